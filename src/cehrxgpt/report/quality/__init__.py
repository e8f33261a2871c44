"""Data quality: counts of an event data set (`facts`), and what follows from them in ranked, plain words (`findings`)."""
