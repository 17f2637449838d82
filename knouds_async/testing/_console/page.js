"use strict";
// Fetches the page anew each second and carries over what has changed, so that one place renders; where a reader has
// scrolled to, and what has the focus, stays. Without it the page is reloaded.
const said = document.getElementById("said");
const pause = document.getElementById("pause");
let paused = false;

function say(text) {
  if (said.textContent !== text) said.textContent = text;
}

function carryOver(shown, fresh) {
  if (shown.nodeName !== fresh.nodeName) {
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
pause.addEventListener("click", () => {
  paused = !paused;
  pause.textContent = paused ? "Go on" : "Pause";
  say(paused ? "Paused" : "Live");
});
document.addEventListener("visibilitychange", () => { if (!document.hidden && !paused) refresh().catch(() => {}); });
say("Live");
setTimeout(go, 1000);
