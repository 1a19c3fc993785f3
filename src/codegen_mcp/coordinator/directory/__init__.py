"""Who owns which session: the one durable state of a coordinator."""
