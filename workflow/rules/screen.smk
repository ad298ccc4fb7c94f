"""What a run says on the screen, by Snakemake's log events: what it will do, each job that ends, the headline scores.

What is said is written in d2llm/cli/screen.py. With D2LLM_BRIEF set, as `make` does, Snakemake's own description of
each job is left to its log file; errors and failed jobs' logs are shown either way.
"""

import logging
from collections import Counter

from snakemake.logging import logger as events
from snakemake_interface_logger_plugins.common import LogEvent

from d2llm.cli import screen

# What Snakemake tells of jobs that go well.
DESCRIPTIONS = {
    *(LogEvent.RUN_INFO, LogEvent.JOB_INFO, LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.PROGRESS),
    LogEvent.SHELLCMD,
}
# And what it tells of itself at the start, without an event.
PREAMBLE = ("Provided cores", "Rules claiming", "Conda environments", "Select jobs")


class Screen(logging.Handler):
    """Passes the starts and ends of jobs on."""

    watch = None

    def emit(self, record):
        event = getattr(record, "event", None)
        if self.watch and event == LogEvent.JOB_INFO:
            self.watch.start(record.jobid)
        elif self.watch and event == LogEvent.JOB_FINISHED:
            self.watch.end(record.job_id)
        elif event is None and str(record.msg).startswith("Nothing to be done"):
            say_end()


def say(text):
    print(text, file=sys.stderr, flush=True)


def say_start():
    """Before the first job: what there is to do, as `d2llm plan` reckons it."""
    if SCREEN not in events.handlers:
        return
    jobs = list(workflow.dag.needrun_jobs())
    given = REQUESTS.given
    known = {job.jobid: screen.job(given, job.rule.name, dict(job.wildcards.items())) for job in jobs}
    slots = max(1, workflow.cores // CONFIG.threads if workflow.local_exec else workflow.nodes)
    watch = screen.Watch(known, slots, say)
    say(f"\n{screen.opening(CONFIG, PATHS, Counter(job.rule.name for job in jobs), watch.left(), slots)}\n")
    SCREEN.watch = watch
    screen.beating(watch)


def say_end():
    """Where the whole was asked for: its headline scores."""
    if any(job.rule.name == "report" for job in workflow.dag.jobs):
        print(f"\n{screen.closing(CONFIG, PATHS)}\n", flush=True)


def brief(record):
    """Whether a record is shown."""
    return getattr(record, "event", None) not in DESCRIPTIONS and not str(record.msg).startswith(PREAMBLE)


SCREEN = Screen()
if workflow.is_main_process and not workflow.dryrun and not workflow.touch:
    events.addHandler(SCREEN)
    if os.environ.get("D2LLM_BRIEF"):
        for handler in events.handlers:
            if handler.name == "DefaultStreamHandler":
                handler.addFilter(brief)


onsuccess:
    if SCREEN.watch:
        say_end()
