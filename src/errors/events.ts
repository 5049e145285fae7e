import { rows } from "./entry.js";

const UNTOUCHED = { httpStatus: 503, data: "Sessions and histories are untouched." };

/** The audit log cannot be written to, or was changed after it was written. */
export const EVENT_ERRORS = rows(7, UNTOUCHED, {
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
