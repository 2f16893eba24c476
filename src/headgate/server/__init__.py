"""HTTP: OpenAI's and Anthropic's APIs over an assistant, and a page to talk to it."""

from headgate.server.app import ServerOptions, create_app
from headgate.server.listen import BackgroundServer, serve

__all__ = ["BackgroundServer", "ServerOptions", "create_app", "serve"]
