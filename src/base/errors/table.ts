import { CONFIGURATION_ERRORS } from "./configuration.js";
import { rows } from "./entry.js";
import { CONFLICT_ERRORS, NOT_FOUND_ERRORS } from "./refused.js";
import { CUT_ERRORS, EXHAUSTED_ERRORS, INTERNAL_ERRORS, UNAVAILABLE_ERRORS } from "./unavailable.js";

const UNTOUCHED = { httpStatus: 503, data: "Sessions and histories are untouched." };

/** The audit log cannot be written to, or was changed after it was written. */
const EVENT_ERRORS = rows(7, UNTOUCHED, {
  FLEET_EVENTS_UNWRITABLE: {
    retryable: true,
    title: "The audit log cannot be written.",
    data: "The action was refused, because it must not happen without its event. Sessions and histories are untouched.",
    causes: ["The disk of the state folder is full or read-only.", "The folder events belongs to another user."],
    fixes: ["df -h PATH; df -i PATH", "ls -ld PATH", "copilotfleet doctor"],
  },
  FLEET_EVENTS_BROKEN: {
    title: "The audit log is not as it was written.",
    data: "Sessions and histories are untouched. The events before the place in the message are as they were written.",
    causes: [
      "Somebody changed, removed or moved lines of the log.",
      "The disk lost data, for example when the machine lost its power.",
      "The state folder was restored from a backup.",
    ],
    fixes: [
      "copilotfleet events verify # names the first such place in the log of each host",
      "Compare the folder events with a backup.",
      "copilotfleet doctor",
    ],
  },
});

const UNCHANGED = { httpStatus: 422, data: "Nothing was changed." };

/** The call itself is wrong. */
const INPUT_ERRORS = rows(2, UNCHANGED, {
  FLEET_USAGE_INVALID: {
    title: "The command or the call has an argument that is not allowed.",
    causes: ["A flag is unknown, is missing, has a value that is not allowed, or does not go with another flag."],
    fixes: ["copilotfleet COMMAND --help"],
  },
  FLEET_CONTENT_TOO_LARGE: {
    httpStatus: 413,
    title: "The body of the HTTP request is too large.",
    causes: ["It has more bytes than the route accepts. For a prompt, the limit is serve.maxFrame."],
    fixes: ["Send less.", "copilotfleet config get serve.maxFrame"],
  },
  FLEET_ARCHIVE_INVALID: {
    title: "The file is not an archive of a session that this version can import.",
    causes: [
      "The file was not written by the command export, was changed, or is incomplete.",
      "A newer version of copilotfleet wrote it.",
      "It lists paths, links or sizes that an import must not create.",
    ],
    fixes: ["copilotfleet export SESSION --user USER --output FILE", "copilotfleet import FILE --user USER"],
  },
  FLEET_ARCHIVE_TOO_LARGE: {
    title: "The session is too large for an archive.",
    causes: ["Its files have more than 2 GiB, or it has more than 100,000 files and folders."],
    fixes: ["Delete files that the session no longer needs.", "copilotfleet list --user USER"],
  },
  FLEET_IDEMPOTENCY_KEY_REUSED: {
    title: "The idempotency key belongs to another request.",
    causes: [
      "The user sent another prompt with this key, or sent it to another session. A key counts for 24 hours.",
      "The user asked for another new session with this key.",
      "The session was deleted, and another one has its id.",
    ],
    fixes: ["Choose another key for each prompt, for example a random one.", "Repeat a request without a change."],
  },
  FLEET_CLOSED: {
    title: "The program called a fleet after it had closed it.",
    causes: ["Fleet.close() was called before or during this call."],
    fixes: ["Open another fleet with Fleet.open(), or close this one later."],
  },
  FLEET_USER_INVALID: {
    title: "The value is not a user id.",
    causes: [
      "A user id has 1 to 128 bytes of letters and digits of any script and of . _ @ + -, and does not start with . or -.",
      "Some names are reserved, such as constructor and prototype.",
    ],
    fixes: ["Choose an id that follows this rule, for example the name of the login."],
  },
  FLEET_SESSION_ID_INVALID: {
    title: "The value is not a session id.",
    causes: [
      "A session id has 1 to 128 characters of A-Z a-z 0-9 . _ -, does not start with -, and is not . or ..",
      "The runtime in use accepts fewer characters than that.",
    ],
    fixes: ["Use letters, digits, _ and - only.", "Leave the id out: the fleet makes one."],
  },
  FLEET_DURATION_INVALID: {
    title: "The value is not a duration, or it is out of range.",
    causes: ["The number has no unit, has an unknown unit, or is below or above the limit in the message."],
    fixes: ['Write a number with a unit: "500ms", "30s", "15m", "24h" or "7d".'],
  },
  FLEET_SIZE_INVALID: {
    title: "The value is not a size.",
    causes: ["The number has no unit or an unknown unit, or it is not a positive number."],
    fixes: ['Write a number with a unit: "512kb", "64mb" or "1gb".'],
  },
  FLEET_PORT_INVALID: {
    title: "The value is not a port number.",
    causes: ["A port is a whole number from 1 to 65535."],
    fixes: ["Choose a port from 1024 to 65535. Lower ones need privileges."],
  },
});

/**
 * Every error of the fleet. A code is part of the contract because scripts match on it: it is never renamed.
 * docs/errors.md and `copilotfleet explain` come from this table.
 */
export const ERRORS = {
  ...INTERNAL_ERRORS,
  ...INPUT_ERRORS,
  ...CONFIGURATION_ERRORS,
  ...NOT_FOUND_ERRORS,
  ...CONFLICT_ERRORS,
  ...EXHAUSTED_ERRORS,
  ...UNAVAILABLE_ERRORS,
  ...EVENT_ERRORS,
  ...CUT_ERRORS,
};

export type FleetErrorCode = keyof typeof ERRORS;
