"""The toy base, result cache, real-width networks and memory measurement that studies share."""
