"""List the runs so far: `nst runs data=digits 'loss=*nst*' sort=best`."""

from collections.abc import Sequence

from nst.cli.errors import readable_errors

USAGE = """List runs, by data set, teacher and student: their differences, and mean ± std (n)
and median over seeds.

  nst runs [field=value ...] [each=true] [sort=FIELD] [format=table|json|csv] [outputs=FOLDER]

  fields: data teacher model loss seed epochs state last best best_epoch collapsed seconds folder
  values: several separated by commas; * matches anything: 'loss=*nst*,kd' seed=0 state=finished
  last:   top-1 on the test images; of a run that is not finished, on the images of its evaluations
  each:   true lists single runs, with their folders
  sort:   last (default), best: highest first; other fields: lowest first
  format: table (default), json, csv"""


def main(arguments: Sequence[str]) -> None:
    """Run the command with its arguments."""
    with readable_errors():
        if any(argument in ("-h", "--help", "help") for argument in arguments):
            print(USAGE)
            return
        from nst.tables.listing import list_runs

        list_runs(arguments)
