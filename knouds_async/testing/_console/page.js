"use strict";
// Fetches the page anew each second and carries over what has changed, so that one place renders; where a reader has
// scrolled to, what has the focus, and what was typed, stays. Without it the page is reloaded, and changes nothing.
const said = document.getElementById("said");
const pause = document.getElementById("pause");
let paused = false;

function say(text) {
  if (said.textContent !== text) said.textContent = text;
}

function carryOver(shown, fresh) {
  if (shown.nodeName === "OUTPUT") return; // what the last change was answered
  if (shown.nodeName !== fresh.nodeName || shown.dataset?.send !== fresh.dataset?.send) {
    shown.replaceWith(fresh);
  } else if (shown.nodeType === Node.TEXT_NODE) {
    if (shown.data !== fresh.data) shown.data = fresh.data;
  } else {
    for (const { name } of [...shown.attributes]) if (!fresh.hasAttribute(name)) shown.removeAttribute(name);
    for (const { name, value } of fresh.attributes) {
      if (shown.getAttribute(name) !== value) shown.setAttribute(name, value);
    }
    const [old, now] = [[...shown.childNodes], [...fresh.childNodes]];
    now.forEach((child, place) => (place < old.length ? carryOver(old[place], child) : shown.append(child)));
    old.slice(now.length).forEach((child) => child.remove());
  }
}

async function refresh() {
  const answer = await fetch(location.href, { cache: "no-store" });
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of fresh.querySelectorAll("[data-live]")) {
    const shown = document.getElementById(part.id);
    if (shown) carryOver(shown, part);
  }
}

async function send(form) {
  const [method, path] = form.dataset.send.split(" ");
  const answered = form.querySelector("output");
  try {
    const body = {};
    for (const { name, value, dataset } of form.querySelectorAll("[name]")) {
      if (value.trim()) body[name] = "json" in dataset ? JSON.parse(value) : value.trim();
    }
    const headers = { "content-type": "application/json" };
    const answer = await fetch(`__emulator__/${path}`, { method, headers, body: JSON.stringify(body) });
    if (!answer.ok) throw new Error((await answer.json()).error);
    form.reset();
    answered.textContent = "";
    await refresh();
  } catch (error) {
    answered.textContent = error.message;
  }
}

document.addEventListener("submit", (event) => {
  event.preventDefault();
  const { ask } = event.target.dataset;
  if (!ask || confirm(ask)) send(event.target);
});

async function go() {
  if (!paused && !document.hidden) {
    try {
      await refresh();
      say("Live");
    } catch {
      say("The emulator does not answer");
    }
  }
  setTimeout(go, 1000);
}

pause.hidden = false;
document.body.classList.add("scripted");
pause.addEventListener("click", () => {
  paused = !paused;
  pause.textContent = paused ? "Continue" : "Pause";
  say(paused ? "Paused" : "Live");
});
document.addEventListener("visibilitychange", () => { if (!document.hidden && !paused) refresh().catch(() => {}); });
say("Live");
setTimeout(go, 1000);
