"""What an emulator shows to people and takes from tests in other languages; the service itself knows nothing of it."""
