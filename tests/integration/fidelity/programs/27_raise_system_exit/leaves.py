raise SystemExit(15)
