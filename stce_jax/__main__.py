"""`python -m stce_jax` is `stce`."""

from stce_jax.cli import main

if __name__ == "__main__":
    main()
