from django.apps import AppConfig


class BillingSiteConfig(AppConfig):
    name = "billing_site"
    verbose_name = "Termkeeper"

    def ready(self) -> None:
        """Make the Celery application known to whoever sends a task, in every process."""
        import billing_site.celery
        import billing_site.checks  # noqa: F401
