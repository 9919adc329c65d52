"""Fast twins of slow formulas, each beside its plain reference. torch only: nothing here imports star."""
