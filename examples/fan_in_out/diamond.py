"""The slides' "Defining Dependencies": A, then B, C and D side by side, then E."""

from balsam_lite.launcher.dag import add_dependency, add_job, transaction

with transaction():  # all of it is written together, so that no launcher sees a part
    A = add_job(name="A", application="generate")
    B, C, D = [
        add_job(
            name=name,
            application="simulate",
            input_files=name + ".inp",
            parents=[A],
        )
        for name in "BCD"
    ]
    E = add_job(name="E", application="reduce", input_files="*.out")

    for job in B, C, D:
        add_dependency(job, E)
