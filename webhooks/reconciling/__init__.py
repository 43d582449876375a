"""Everything at Stripe beside everything here: a run of it is in `reconcile`, what counts as a difference in
`differences`, how one is mended in `repairs`.
"""
