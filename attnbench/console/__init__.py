"""What the command line prints: progress, listings, plans and tables, through rich.

Without a terminal nothing but plain text comes out: no bars, no colours, no control codes.
"""

from attnbench.console.catalogues import CATALOGUES, catalogue
from attnbench.console.listing import Listing, listing
from attnbench.console.plan_view import duration, plan_listing, reasons, stage_listing
from attnbench.console.profile_view import profile_announcement
from attnbench.console.progress import progress_bar, run_listener
from attnbench.console.scores_view import scores_table, self_test_listing
from attnbench.console.screen import console, print_comparison, print_notice, print_table, write_json

__all__ = [
    "CATALOGUES",
    "Listing",
    "catalogue",
    "console",
    "duration",
    "listing",
    "plan_listing",
    "print_comparison",
    "print_notice",
    "print_table",
    "profile_announcement",
    "progress_bar",
    "reasons",
    "run_listener",
    "scores_table",
    "self_test_listing",
    "stage_listing",
    "write_json",
]
