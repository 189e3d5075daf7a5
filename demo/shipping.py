"""What a parcel from Hollow Creek Mill costs, as the web shop reckons it.

The delivery terms say it in sentences; this module says it in numbers. When
the two disagree, the terms are right and this file has a fault.
"""

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal

MAX_PARCEL_KG = Decimal("30")
HEAVY_SACK_KG = Decimal("20")
HEAVY_SACK_SURCHARGE = Decimal("6.00")
CUT_OFF = time(11, 0)


@dataclass(frozen=True)
class Zone:
    """A group of countries with one postage and one threshold."""

    name: str
    postage: Decimal
    free_from: Decimal
    leaves_on: tuple[int, ...]  # weekdays, Monday is 0


IRELAND = Zone("Ireland", Decimal("4.90"), Decimal("45"), (0, 1, 2, 3, 4))
GERMANY = Zone("Germany", Decimal("9.80"), Decimal("80"), (1, 4))
UNION = Zone("European Union", Decimal("12.40"), Decimal("110"), (1, 4))


class NotDelivered(ValueError):
    """We do not send flour to this country."""


def zone_of(country: str) -> Zone:
    """The zone of a two-letter country code.

    Flour is food of plant origin, and outside the Union each parcel would need
    a health certificate that costs more than the flour. So there is no fourth zone.
    """
    members = "AT BE BG CY CZ DK EE ES FI FR GR HR HU IT LT LU LV MT NL PL PT RO SE SI SK"
    code = country.upper()
    if code == "IE":
        return IRELAND
    if code == "DE":
        return GERMANY
    if code in members.split():
        return UNION
    raise NotDelivered(f"no delivery to {code}")


def parcels(weights: list[Decimal]) -> list[Decimal]:
    """Fills parcels greedily, heaviest item first, none above 30 kg."""
    filled: list[Decimal] = []
    for weight in sorted(weights, reverse=True):
        for i, load in enumerate(filled):
            if load + weight <= MAX_PARCEL_KG:
                filled[i] = load + weight
                break
        else:
            filled.append(weight)
    return filled


def postage(country: str, weights: list[Decimal], goods: Decimal) -> Decimal:
    """Postage in euros for items of these weights, worth `goods` together.

    Postage is paid per parcel, and not at all from the zone's threshold on.
    The surcharge for a sack over 20 kg is always paid: the driver lifts it
    whether or not the customer spent enough.
    """
    zone = zone_of(country)
    per_parcel = Decimal("0") if goods >= zone.free_from else zone.postage
    heavy = sum(1 for w in weights if w > HEAVY_SACK_KG)
    return per_parcel * len(parcels(weights)) + HEAVY_SACK_SURCHARGE * heavy


def leaves(country: str, ordered: datetime, holidays: frozenset[date] = frozenset()) -> date:
    """The day a parcel leaves the mill: today before 11:00, else the next day its zone is served."""
    zone = zone_of(country)
    day = ordered.date()
    if ordered.time() >= CUT_OFF:
        day += timedelta(days=1)
    while day.weekday() not in zone.leaves_on or day in holidays:
        day += timedelta(days=1)
    return day
