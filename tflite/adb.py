"""The adb client, for one Android device."""

import os
import subprocess

from manifest import CannotRun, sha256


class Adb:
    """The adb client, for one device."""

    def __init__(self, command, serial):
        self.command = command
        self.serial = serial

    def line(self, *words):
        """The whole command line of an adb command for the device."""
        return [*self.command, *(["-s", self.serial] if self.serial else []), *words]

    def run(self, words, timeout=60.0):
        """Runs `line(*words)`.

        Returns:
            (exit code, standard output, standard error).

        Raises:
            CannotRun: adb is missing, or takes too long.
        """
        try:
            done = subprocess.run(
                self.line(*words),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except FileNotFoundError as error:
            raise CannotRun(f"{self.command[0]}: not found; install Android's platform-tools.") from error
        except subprocess.TimeoutExpired as error:
            raise CannotRun(f"adb {words[0]}: no answer within {timeout:g} seconds.") from error
        return done.returncode, done.stdout, done.stderr

    def must(self, words, timeout=60.0):
        """Runs and gives the standard output; any failure is a `CannotRun` that says what adb said."""
        code, out, err = self.run(words, timeout)
        if code:
            raise CannotRun(f"adb {words[0]} failed: {reason_of(out, err)}")
        return out

    def choose_device(self):
        """Settles on one device that is ready.

        Raises:
            CannotRun: none, several and no serial, or one that is not authorised or not online.
        """
        serial, self.serial = self.serial, None
        lines = self.must(["devices"]).splitlines()[1:]
        states = dict(line.split()[:2] for line in lines if len(line.split()) >= 2)
        if not states:
            raise CannotRun("no Android device: connect one and allow USB debugging (adb devices lists none).")
        if serial is None and len(states) > 1:
            raise CannotRun(f"{len(states)} devices; choose one with --serial: {', '.join(sorted(states))}.")
        serial = serial or next(iter(states))
        if serial not in states:
            raise CannotRun(f"no device {serial!r}; adb sees {', '.join(sorted(states))}.")
        if states[serial] == "unauthorized":
            raise CannotRun(f"device {serial} is unauthorised: unlock it and accept this computer's debugging key.")
        if states[serial] != "device":
            raise CannotRun(f"device {serial} is {states[serial]}; expected it online.")
        self.serial = serial

    def push(self, source, target, timeout):
        """Pushes a file and proves that all of it arrived."""
        code, out, err = self.run(["push", source, target], timeout)
        reason = reason_of(out, err)
        if "No space left" in out + err:
            raise CannotRun(f"no space left on the device for {source} ({os.path.getsize(source)} bytes).")
        if code:
            raise CannotRun(f"adb push of {source} failed: {reason}")
        found = self.must(["shell", f"stat -c %s {target}; sha256sum {target}"]).split()
        size = os.path.getsize(source)
        if not found or found[0] != str(size):
            raise CannotRun(f"the push of {source} was cut off: {found[0] if found else 0} of {size} bytes arrived.")
        if len(found) < 2 or found[1] != sha256(source):
            raise CannotRun(f"{source} arrived damaged: its SHA-256 on the device differs.")


def reason_of(out, err):
    """The last line of what a command wrote to standard error, or else to standard output."""
    lines = [line for line in (err.strip() or out.strip()).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "adb gave no reason"
