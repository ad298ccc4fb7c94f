"""Tables and figures from the collected scores only: no model, no task data, neither torch nor mteb."""
