"""Amounts in whole minor units, as people read them. No float ever touches money."""

# Currencies whose minor unit is not a hundredth (ISO 4217, as Stripe counts them).
WITHOUT_CENTS = frozenset(
    {"BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF"}
)
THOUSANDTHS = frozenset({"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"})


def money(amount_minor: int, currency: str) -> str:
    """`1,234.50 EUR`, `-0.50 EUR`."""
    decimals = 0 if currency in WITHOUT_CENTS else 3 if currency in THOUSANDTHS else 2
    units, rest = divmod(abs(amount_minor), 10**decimals)
    sign = "-" if amount_minor < 0 else ""
    return f"{sign}{units:,}{f'.{rest:0{decimals}}' if decimals else ''} {currency}"
