#!/bin/bash -x

# A job of the application Hello, with a tag by which it is found again
balsam job create --site thetagpu_tutorial --app Hello --workdir=demo/hello --param say_hello_to=world --tag workflow=hello --yes

balsam job ls --tag workflow=hello
