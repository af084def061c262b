"""The scripts one launches; `tokforget.recipes` once installed."""
