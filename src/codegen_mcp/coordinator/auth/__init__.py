"""Who may: tokens, certificates and TLS, and what each principal may use."""
