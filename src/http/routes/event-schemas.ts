import * as v from "valibot";
import { EVENT_TYPES } from "../../base/event.js";
import { LONGEST_TEXT, text } from "./fields.js";
import { id, object, paging, time } from "./schemas.js";

const word = v.string();
const orNull = v.nullable(word);

export const eventFilter = object({
  ...paging,
  user: v.optional(
    v.pipe(
      id,
      v.description(
        "Only what this user did, or what concerns this user. Another user than the caller needs the scope `admin`.",
      ),
    ),
  ),
  type: v.optional(v.picklist(EVENT_TYPES, EVENT_TYPES.join(", "))),
  since: v.optional(
    v.pipe(
      text('a duration, such as "1h", or a time', LONGEST_TEXT),
      v.description("How long ago, such as `1h`, or a time in ISO 8601. Default: a day ago; for a stream: now."),
    ),
  ),
});

const event = v.object({
  id: word,
  seq: v.pipe(v.number(), v.description("Counts the events of a host, from 1.")),
  at: time,
  type: v.pipe(word, v.description("The kind of event, such as `token.issued`. Later versions may have more kinds.")),
  actor: v.object({ user: orNull, tokenId: orNull, via: word, os: orNull }),
  user: orNull,
  sessionId: orNull,
  serverId: orNull,
  host: orNull,
  outcome: v.pipe(
    word,
    v.description("`ok`, `refused` or `failed`; for the end of a turn `completed`, `failed`, `aborted` or `cut`."),
  ),
  reason: orNull,
  detail: orNull,
});

export const events = v.object({ events: v.array(event), next: orNull });
