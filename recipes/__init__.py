"""Scripts to launch; in an installed package they are `tokforget.recipes`."""
