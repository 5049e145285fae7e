import { CONFIGURATION_ERRORS } from "./configuration.js";
import { rows } from "./entry.js";
import { CONFLICT_ERRORS, NOT_FOUND_ERRORS } from "./refused.js";
import { CUT_ERRORS, EXHAUSTED_ERRORS, INTERNAL_ERRORS, UNAVAILABLE_ERRORS } from "./unavailable.js";

const UNTOUCHED = { httpStatus: 503, data: "Sessions and histories are untouched." };

/** The audit log cannot be written. */
const EVENT_ERRORS = rows(7, UNTOUCHED, {
  FLEET_EVENTS_UNWRITABLE: {
    retryable: true,
    title: "The audit log cannot be written.",
    data: "The action was refused, because it must not happen without its event. Sessions and histories are untouched.",
    causes: ["The disk of the state folder is full or read-only.", "The folder events belongs to another user."],
    fixes: ["df -h PATH; df -i PATH", "ls -ld PATH", "copilotfleet doctor"],
  },
});

const UNCHANGED = { httpStatus: 422, data: "Nothing was changed." };

/** The call itself is wrong. */
const INPUT_ERRORS = rows(2, UNCHANGED, {
  FLEET_USAGE_INVALID: {
    title: "The command or the call has an argument that is not allowed.",
    causes: [
      "A flag is unknown, is missing, or does not go with another flag.",
      "A value is not a user id, a session id, a duration, a size or a port. The message states what is allowed.",
      "The file to import is not an archive that the command export wrote, or it is incomplete, was changed, or lists paths, links or sizes that an import must not create.",
    ],
    fixes: ["Correct the value as the message states.", "copilotfleet COMMAND --help"],
  },
  FLEET_CONTENT_TOO_LARGE: {
    httpStatus: 413,
    title: "The body of the HTTP request, or the session to export, is too large.",
    causes: [
      "The body has more bytes than the route accepts. For a prompt, the limit is serve.maxFrame.",
      "The session's files have more than 2 GiB, or it has more than 100,000 files and folders.",
    ],
    fixes: ["Send less, or delete files that the session no longer needs.", "copilotfleet config get serve.maxFrame"],
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
});

/**
 * Every error of the fleet. A code is part of the contract because scripts match on it: it is never renamed.
 * `copilotfleet explain` and the page of error codes on the site come from this table.
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
