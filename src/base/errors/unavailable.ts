import { rows } from "./entry.js";

const UNKNOWN = {
  httpStatus: 500,
  data: "The call may have done a part of its work. Recorded sessions and their histories stay readable.",
};
const NOTHING_DONE = { httpStatus: 429, data: "Nothing was changed. Running servers and turns are not affected." };
const IN_FILES = { httpStatus: 503, data: "The histories are in files, which this error does not change." };
const UP_TO_LAST_STEP = "The history up to the last finished step is kept. The rest of this reply is lost.";
const LAST_STEP = { httpStatus: 503, data: UP_TO_LAST_STEP };

/** A bug. */
export const INTERNAL_ERRORS = rows(1, UNKNOWN, {
  FLEET_INTERNAL: {
    title: "This is a bug in copilotfleet.",
    causes: ["The code met a case that it does not handle."],
    fixes: [
      "DEBUG=1 copilotfleet COMMAND # the command that failed; shows where it failed",
      "copilotfleet doctor",
      "Report it with this output and the log of serve.",
    ],
  },
});

/** A limit, a resource or a deadline is exhausted. */
export const EXHAUSTED_ERRORS = rows(6, NOTHING_DONE, {
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
    data: "Nothing was changed. The user's sessions and histories are on disk, ready for the next start.",
    causes: ["The machine is busy.", "Another command starts or stops the same server and takes long."],
    fixes: ["copilotfleet spawn --user USER --wait 60s", "copilotfleet logs SERVER"],
  },
  FLEET_LIMIT_REACHED: {
    retryable: true,
    title: "A limit is reached.",
    data: "The prompt was not sent, and the refusal does not count as a turn. Turns that run go on, unless the files of their server still grow beyond sandbox.disk.",
    causes: [
      "The user has begun as many turns, runs as many at once, or has used as many model tokens as limits.default, limits.groups or limit set allows.",
      "The user has as many connections, sessions, requests or bytes as limits.default or limits.total allows.",
      "The session has used as many AI credits as session.maxCredits allows.",
      "The server has as many sessions in memory as session.maxActive allows, and all of them are in use.",
      "The files of the server take more disk space than sandbox.disk allows, or an agent made a folder that cannot be measured.",
      "The unanswered requests of the connection are larger in total than serve.maxFrame.",
    ],
    fixes: [
      "Wait for the time in retryAfterMs, or in the header Retry-After.",
      "copilotfleet limit show --user USER # what is used of each limit, and where it is set",
      "copilotfleet limit set --user USER --turns-per-minute N # a higher limit for this user alone; there is one flag for each limit",
      "copilotfleet list --user USER",
      "copilotfleet evict --max 10 # unloads idle sessions; their state stays",
      "copilotfleet delete SESSION # a session that the user no longer needs; its history is deleted, too",
      "Close connections of this user that nobody uses.",
      "copilotfleet describe SERVER # shows its home, where files may fill sandbox.disk",
      "Raise the limit in the message.",
    ],
  },
  FLEET_REQUEST_TIMEOUT: {
    httpStatus: 503,
    retryable: true,
    title: "The HTTP request took too long.",
    data: "Work that the request began may continue. Histories are kept.",
    causes: ["The store, a server or another host does not answer in time."],
    fixes: ["Try again in a moment.", "copilotfleet doctor"],
  },
  FLEET_TURN_TIMEOUT: {
    httpStatus: 504,
    title: "The turn did not end in time.",
    data: UP_TO_LAST_STEP,
    causes: ["The model or a tool takes longer than the timeout. The turn was ended."],
    fixes: ["copilotfleet send SESSION TEXT --user USER --timeout 10m"],
    httpFix: "Send the prompt with a longer timeout in the body.",
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
export const UNAVAILABLE_ERRORS = rows(7, IN_FILES, {
  FLEET_EVENTS_UNWRITABLE: {
    retryable: true,
    title: "The audit log cannot be written.",
    data: "The action was refused, because it must not happen without its event. Sessions and histories are untouched.",
    causes: ["The disk of the state folder is full or read-only.", "The folder events belongs to another user."],
    fixes: ["df -h PATH; df -i PATH", "ls -ld PATH", "copilotfleet doctor"],
  },
  FLEET_STATE_UNWRITABLE: {
    title: "The state, or a server's folder, cannot be written.",
    data: "Existing records and histories stay intact, and the change that failed was not made. A reply that came while the disk was full may be missing from its history.",
    causes: [
      "The disk is full or read-only.",
      "The folder belongs to another user.",
      "The file system does not keep permissions.",
    ],
    fixes: [
      "df -h PATH; df -i PATH",
      "ls -ld PATH",
      "copilotfleet gc --dry-run # shows what gc would delete to make room",
    ],
  },
  FLEET_STATE_CORRUPT: {
    title: "The state, or the audit log, is damaged.",
    data: "The fleet changed nothing, because it does not guess. The histories are in other files, below COPILOTFLEET_HOME/servers or in the shared storage.",
    causes: [
      "A disk lost data, for example when the machine lost its power.",
      "Somebody changed the files, the keys or lines of the audit log by hand, or restored them from a backup.",
    ],
    fixes: [
      "copilotfleet doctor # shows what is damaged and what was lost",
      "copilotfleet doctor --fix # uses an older revision or a copy, or rebuilds the registry from the servers' folders",
      "Restore the file in the message from a backup.",
      "copilotfleet events verify # names the first damaged place in the audit log of each host",
    ],
  },
  FLEET_STATE_UNSIGNED: {
    title: "A record in Redis does not carry the signature of this fleet, or is outdated.",
    data: "The fleet did not use the record, and changed nothing.",
    causes: [
      "Somebody who may write to Redis wrote it, moved it to another name, or put an older one back.",
      "Redis lost changes in a failover, and with them the removal of a session's member.",
      "The hosts of the fleet have different keys.",
    ],
    fixes: [
      "copilotfleet doctor",
      "Give all hosts the same key: storeOptions.key, or the file store-key in the state folder.",
      "copilotfleet store sign --all # only if the key is lost: lists the records, and signs them",
      "If Redis lost changes: restart serve on all hosts, then set the members of the session again.",
    ],
  },
  FLEET_FILES_EXHAUSTED: {
    title: "This process or the machine has too few open files, processes or memory left.",
    data: "Nothing was changed, except for what the command had finished before.",
    causes: [
      "The limit of open files is too low (ulimit -n).",
      "A program started the command with few files left.",
      "The machine has no processes or memory left, so the fleet cannot read which processes run.",
    ],
    fixes: ["ulimit -n 1024", "Set LimitNOFILE= in the systemd unit, or nofile in /etc/security/limits.conf."],
  },
  FLEET_STATE_LOST: {
    title: "Redis lost the fleet's data.",
    data: "The histories are on the hosts' disks or in the shared storage. Redis no longer records whose they are, nor any tokens and leases.",
    causes: ["Redis was restarted without its data, or was flushed."],
    fixes: [
      "Restore a backup of the Redis database.",
      "Only if there is no backup: the message has the command that continues without the data.",
    ],
  },
  FLEET_HOST_AWAY: {
    retryable: true,
    title: "A host or its console cannot be reached.",
    data: "The histories are on that host's disk or in the shared storage, and are not lost. A turn that ran there may be cut.",
    causes: [
      "It is down or busy, the network is cut, or copilotfleet serve does not run there.",
      "The session is on the disk of a host that is gone, and without shared storage nobody else has its history.",
      "serve runs without serve.http, so nobody serves the console.",
    ],
    fixes: [
      "copilotfleet top --once",
      "copilotfleet serve # on that host; add --http 127.0.0.1:4380 for the console",
      "copilotfleet doctor # on that host",
      "Try again in a minute: with shared storage, another host takes over.",
    ],
  },
  FLEET_STORAGE_UNUSABLE: {
    title: "The shared storage cannot be used.",
    data: "Nothing was changed. While the storage is missing, the fleet does not take its sessions for deleted ones.",
    causes: ["It is not mounted, is read-only or full, or the folder is not the one that the other hosts use."],
    fixes: ["findmnt --target PATH", "df -h PATH", "copilotfleet doctor"],
  },
  FLEET_STORE_UNAVAILABLE: {
    retryable: true,
    title: "Redis does not answer.",
    data: "A change that was under way is stored completely or not at all. The histories are in files and not in Redis.",
    causes: ["Redis is down, is too busy, or cannot be reached over the network."],
    fixes: ["redis-cli -u URL PING # on this host", "redis-cli PING; redis-cli INFO clients # on the host of Redis"],
  },
  FLEET_SERVER_EXITED: {
    httpStatus: 502,
    title: "The runtime ended while it was being started.",
    data: "No turn began. The user's sessions and histories are on disk, ready for the next start.",
    causes: ["It could not use its settings, its home folder or its port. The message shows the end of its output."],
    fixes: ["copilotfleet logs SERVER", "copilotfleet doctor"],
  },
  FLEET_SERVER_LOST: {
    httpStatus: 502,
    retryable: true,
    title: "The server ended during the call.",
    data: UP_TO_LAST_STEP,
    causes: ["It crashed, somebody killed it, or the machine ran out of memory."],
    fixes: [
      "copilotfleet send SESSION TEXT --user USER # starts the server again",
      "copilotfleet ps",
      "copilotfleet logs SERVER",
    ],
  },
  FLEET_SERVER_UNREACHABLE: {
    httpStatus: 502,
    retryable: true,
    title: "The server does not answer.",
    causes: ["It hangs, is very busy, or takes no more connections.", "It runs on another host."],
    fixes: [
      "copilotfleet ps",
      "copilotfleet logs SERVER",
      "copilotfleet restart SERVER --force # cuts the turns that run there",
    ],
  },
  FLEET_CREDENTIAL_REFUSED: {
    httpStatus: 502,
    title: "GitHub or the model service refuses the credential.",
    data: "Histories are untouched. A prompt that a server had begun is in the history, without an answer.",
    causes: [
      "The token or the key was revoked or has expired, or it does not allow the use of Copilot.",
      "The settings of auth.githubApp are not those of the App, or its installation is suspended.",
    ],
    fixes: [
      "copilotfleet doctor",
      "Put a new token or key into its source. The next turn uses it, without a restart.",
      "copilotfleet send SESSION TEXT --user USER # then takes the turn again",
    ],
  },
  FLEET_MODEL_UNAVAILABLE: {
    httpStatus: 502,
    retryable: true,
    title: "The model service does not answer now.",
    data: UP_TO_LAST_STEP,
    causes: [
      "It is down, overloaded, or limits the requests of the key. The server tried several times.",
      "It cannot be reached at provider.baseUrl.",
    ],
    fixes: [
      "copilotfleet doctor # checks the key and the address of the model",
      "copilotfleet send SESSION TEXT --user USER # the session still works",
    ],
  },
  FLEET_TURN_FAILED: {
    httpStatus: 502,
    title: "The turn ended with an error.",
    data: UP_TO_LAST_STEP,
    causes: ["The model's service refused or failed.", "The prompt was cancelled."],
    fixes: [
      "copilotfleet doctor # checks the key and the address of the model",
      "copilotfleet send SESSION TEXT --user USER # the session still works",
      "copilotfleet logs SERVER",
    ],
  },
});

/** A turn was cut. */
export const CUT_ERRORS = rows(8, LAST_STEP, {
  FLEET_TURN_CUT: {
    title: "A drain cut a turn.",
    causes: ["The turn was still running at the end of the drain's time."],
    fixes: [
      "copilotfleet send SESSION TEXT --user USER # the session still works",
      "Give drains more time: set drain.timeout, for example to 2m.",
    ],
  },
});
