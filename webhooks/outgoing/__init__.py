"""What changes here and Stripe has to be told: rows are made in `telling`, and delivered in `outbound`."""
