"""The account's credits: every run is paid for when it starts, by the trial grant or by credits (contract 3, 7)."""

from __future__ import annotations

from typing import Literal

import attrs

from knouds_async.testing._service.replies import ErrorResponse
from knouds_async.testing.settings import Settings

__all__ = ["Billing", "Charge"]


@attrs.frozen
class Charge:
    """One payment for one run; `paid_by` "grant" is reported by the service as a cost of 0."""

    execution_id: str
    target: str
    amount: int
    at: float
    paid_by: Literal["credits", "grant"]


class Billing:
    """The charges and totals; the balance itself is in the settings, so that a test can top it up."""

    def __init__(self, settings: Settings) -> None:
        """Start with nothing spent."""
        self._settings = settings
        self.charges: list[Charge] = []
        self.spent = 0  # credits
        self.granted = 0  # credits of the trial grant

    def price(self, target: str) -> int:
        """Return the price of a run, in credits."""
        return self._settings.costs.get(target, self._settings.cost)

    def pay(self, execution_id: str, target: str, now: float) -> int:
        """Charge for a run and return the cost the service reports; 402 when the account cannot pay."""
        amount, settings = self.price(target), self._settings
        if settings.grant is not None:
            if settings.grant < amount:
                raise ErrorResponse(402, "grant_exhausted", "Your trial credits are used up. Upgrade to continue.")
            settings.grant -= amount
            self.granted += amount
            self.charges.append(Charge(execution_id, target, amount, now, "grant"))
            return 0
        if settings.credits < amount:
            raise ErrorResponse(402, "INSUFFICIENT_CREDITS", "Not enough credits for this run. Top up to continue.")
        settings.credits -= amount
        self.spent += amount
        self.charges.append(Charge(execution_id, target, amount, now, "credits"))
        return amount
