"""An existing Stripe account moves in."""
