"""How somebody comes to buy: what is offered (`offers`), where it is paid (`checkout`, one page per intent in
`checkout_sessions`), and who bought without being sent by us (`newcomers`).
"""
