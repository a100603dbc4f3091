"""The fusion study: subjects learnt apart, put into one model, by fusion and otherwise."""
