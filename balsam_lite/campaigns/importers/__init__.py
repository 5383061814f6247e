"""Read jobs that other programs have kept, for `balsam import --from KIND`: see `sources`."""
