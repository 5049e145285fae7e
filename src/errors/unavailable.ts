import { rows } from "./entry.js";

/** A bug. */
export const INTERNAL_ERRORS = rows(1, 500, {
  FLEET_INTERNAL: {
    title: "This is a bug in copilotfleet.",
    causes: ["The code met a case that it does not handle."],
    fixes: ["Report it with the message and the log.", "copilotfleet doctor"],
  },
});

/** A limit, a resource or a deadline is exhausted. */
export const EXHAUSTED_ERRORS = rows(6, 429, {
  FLEET_PORTS_EXHAUSTED: {
    httpStatus: 503,
    retryable: true,
    title: "No port is left for another server.",
    causes: ["Servers or other programs hold all ports from ports.from to ports.to."],
    fixes: ["copilotfleet ps", "copilotfleet stop SERVER", "Widen ports.from and ports.to in the configuration."],
  },
  FLEET_SERVER_START_TIMEOUT: {
    httpStatus: 504,
    retryable: true,
    title: "The server did not start in time.",
    causes: ["The machine is busy.", "Another command starts or stops the same server and takes long."],
    fixes: ["copilotfleet spawn --user USER --wait 60s", "copilotfleet logs SERVER"],
  },
  FLEET_SESSIONS_EXHAUSTED: {
    retryable: true,
    title: "The server has no room for another session in memory.",
    causes: ["It has as many sessions loaded as session.maxActive allows, and all of them are in use."],
    fixes: ["copilotfleet list --state active", "Raise session.maxActive."],
  },
  FLEET_REQUESTS_EXHAUSTED: {
    retryable: true,
    title: "The connection has too many unanswered requests.",
    causes: [
      "The unanswered requests of this connection are larger in total than serve.maxFrame, or there are too many of them.",
    ],
    fixes: ["Wait for the answers to earlier requests.", "Raise serve.maxFrame."],
  },
  FLEET_LIMIT_REACHED: {
    retryable: true,
    title: "A limit is reached.",
    causes: ["The user has as many connections, sessions, requests or bytes as limits.default or limits.total allows."],
    fixes: ["Close connections, or delete sessions: copilotfleet delete SESSION", "Raise the limit in the message."],
  },
  FLEET_TURN_TIMEOUT: {
    httpStatus: 504,
    title: "The turn did not end in time.",
    causes: ["The model or a tool takes longer than the timeout. The turn was ended."],
    fixes: ["copilotfleet send SESSION TEXT --user USER --timeout 10m"],
  },
  FLEET_STATE_BUSY: {
    httpStatus: 503,
    retryable: true,
    title: "The state could not be changed in time.",
    causes: ["Other commands kept changing it.", "The fleet changed while it was being copied."],
    fixes: ["Run the command again when fewer other commands are running."],
  },
});

/** The fleet cannot reach or use a part that it needs. */
export const UNAVAILABLE_ERRORS = rows(7, 503, {
  FLEET_STATE_UNWRITABLE: {
    title: "The state, or a server's folder, cannot be written.",
    causes: [
      "The disk is full or read-only.",
      "The folder belongs to another user.",
      "The file system does not keep permissions.",
    ],
    fixes: ["df -h PATH", "ls -ld PATH"],
  },
  FLEET_STATE_CORRUPT: {
    title: "The state is damaged.",
    causes: ["A disk lost data, or somebody changed the files or the keys by hand."],
    fixes: ["copilotfleet doctor", "copilotfleet doctor --fix", "Restore a backup."],
  },
  FLEET_PROCESSES_UNREADABLE: {
    retryable: true,
    title: "The fleet cannot read which processes run.",
    causes: ["This process has no file descriptors left.", "/proc is not mounted, or hides processes."],
    fixes: ["ulimit -n", "findmnt /proc"],
  },
  FLEET_STATE_LOST: {
    title: "Redis lost the fleet's data.",
    causes: ["Redis was restarted without its data, or was flushed."],
    fixes: ["Restore a backup of the Redis database.", "To go on without the data, follow the steps in the message."],
  },
  FLEET_HOST_AWAY: {
    retryable: true,
    title: "A host cannot be reached.",
    causes: ["It is down or busy, the network is cut, or copilotfleet serve does not run there."],
    fixes: ["copilotfleet top", "Try again: with shared storage another host takes over."],
  },
  FLEET_SESSION_STRANDED: {
    title: "The session is on the disk of a host that does not serve.",
    causes: ["The host is gone, and without shared storage nobody else has the session's history."],
    fixes: ["Run copilotfleet serve on that host again.", "copilotfleet top"],
  },
  FLEET_STORAGE_UNUSABLE: {
    title: "The shared storage cannot be used.",
    causes: ["It is not mounted, is read-only or full, or the folder is not the one that the other hosts use."],
    fixes: ["findmnt --target PATH", "df -h PATH", "copilotfleet doctor"],
  },
  FLEET_STORE_UNAVAILABLE: {
    retryable: true,
    title: "Redis does not answer.",
    causes: ["Redis is down, is too busy, or cannot be reached over the network."],
    fixes: ["redis-cli -u URL PING", "Look at the Redis server, and at the network in between."],
  },
  FLEET_SERVER_EXITED: {
    httpStatus: 502,
    title: "The runtime ended while it was being started.",
    causes: ["It could not use its settings, its home folder or its port. The message shows the end of its output."],
    fixes: ["copilotfleet logs SERVER", "copilotfleet doctor"],
  },
  FLEET_SERVER_LOST: {
    httpStatus: 502,
    retryable: true,
    title: "The server ended during the call.",
    causes: ["It crashed, somebody killed it, or the machine ran out of memory."],
    fixes: ["Send the prompt again: the history up to the last finished step is kept.", "copilotfleet logs SERVER"],
  },
  FLEET_SERVER_UNREACHABLE: {
    httpStatus: 502,
    retryable: true,
    title: "The server does not answer.",
    causes: ["It hangs, is very busy, or takes no more connections.", "It runs on another host."],
    fixes: ["copilotfleet ps", "copilotfleet restart SERVER --force"],
  },
  FLEET_TURN_FAILED: {
    httpStatus: 502,
    title: "The turn ended with an error.",
    causes: ["The model's service refused or failed.", "The prompt was cancelled."],
    fixes: ["The session still works: copilotfleet send SESSION TEXT --user USER", "copilotfleet logs SERVER"],
  },
});

/** A turn was cut. */
export const CUT_ERRORS = rows(8, 503, {
  FLEET_TURN_CUT: {
    title: "A drain cut a turn.",
    causes: ["The turn was still running at the end of the drain's time."],
    fixes: [
      "The session still works: copilotfleet send SESSION TEXT --user USER",
      "Give drains longer: drain.timeout.",
    ],
  },
});
