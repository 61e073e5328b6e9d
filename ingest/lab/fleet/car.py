"""A vehicle that publishes, on each stream and when something happens."""

from __future__ import annotations

from typing import Any

from ingest.lab.fleet import words
from ingest.lab.fleet.device import text
from ingest.lab.fleet.vehicle import Vehicle, VehicleState


class Car(Vehicle):
    """A car; buses and robotaxis are cars with more to say."""

    def say(self, stream: str) -> dict[str, Any]:
        """See Device."""
        return self.nev(self.state) if stream == "nev" else words.SAY[stream](self)

    def nev(self, state: VehicleState) -> dict[str, Any]:
        """Return the fields of its `nev` sample for a state, the current one or an earlier one."""
        return words.nev(self, state)

    def trip_began(self) -> None:
        """Say a login and a destination."""
        self.say_now("session", words.login(self) | {"trigger": "ignition_on"})
        self.say_now("cockpit", words.nav(self, "nav_start"))

    def trip_ended(self) -> None:
        """Say the arrival and the logout, which repeats the number of the login."""
        self.say_now("cockpit", words.nav(self, "nav_end"))
        logout = {"event": "logout", "session_seq": self.trips % 65_531 + 1}
        self.say_now("session", logout | {"trigger": "ignition_off"})

    def alarm_raised(self, before: list[VehicleState]) -> None:
        """Say the alarm; at level 3, send the seconds before it again."""
        self.say_now("alarm", words.alarm(self) | {"trigger": "alarm"})
        if self.alarm.level < 3:
            return
        late = {"resend": True, "trigger": "alarm_pre", "sent_at": text(self.clock)}
        samples = [
            {"ts": text(state.at), "seq": self.next_seq("nev")} | self.nev(state) | late
            for state in before
        ]
        if samples:
            self.outbox.append(("nev", samples))
        self.say_now("ad-event", words.minimum_risk(self))
        self.say_now("v2x", words.hazard(self))

    def alarm_goes_on(self) -> None:
        """Say its current state, with the trigger `alarm`."""
        self.say_now("nev", self.nev(self.state) | {"trigger": "alarm"})

    def alarm_cleared(self) -> None:
        """Say that the alarm is over."""
        cleared = {"max_level": 0, "flags": [], "cleared_at": text(self.clock)}
        self.say_now("alarm", words.alarm(self) | cleared | {"trigger": "alarm"})

    def braked_hard(self) -> None:
        """Offer a recording of the hard braking."""
        self.say_now("ad-event", words.collision_warning(self))
        self.say_now("ad-event", words.capture(self, "hard_brake"))
