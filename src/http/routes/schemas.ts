import * as v from "valibot";
import { LONGEST_TITLE, validateSessionId, validateTitle } from "../../base/ids.js";
import { SERVER_STATES } from "../../base/server.js";
import { SESSION_STATES, TURN_OUTCOMES } from "../../base/session.js";
import { parseWhole } from "../../base/values/measures.js";
import { oneOf } from "../../base/values/text.js";
import { SCOPES } from "../../identity/identity.js";
import { attachments, checked, described, label, object, text, tools, turnTimeout } from "./fields.js";

export { label, object };

/*
 * The schemas of requests and answers. The schemas of requests refuse unknown fields. Their messages complete an error
 * message after the word "Allowed:". The library's functions check the values themselves, such as ids and durations.
 */

const MOST_MEMBERS = 1_000;
const LARGEST_PAGE = 200;
const DEFAULT_PAGE = 50;

const duration = described(text, "A number with a unit: `30s`, `15m`, `24h` or `7d`.");
const ALLOWED_MEMBERS = `a list of at most ${MOST_MEMBERS} user ids`;
export const members = v.pipe(
  v.array(v.string(ALLOWED_MEMBERS), ALLOWED_MEMBERS),
  v.maxLength(MOST_MEMBERS, ALLOWED_MEMBERS),
  v.description("Other users who may use the session. It is then collaborative, even if the list is empty."),
);
const flag = v.boolean("true or false");
const title = v.pipe(text, checked(validateTitle), v.maxLength(LONGEST_TITLE));

export const nothing = object({});

/** A number in a query. It arrives as a text, but the API's description presents it to clients as a number. */
const whole = (min: number, max: number, initial: number) => {
  const schema = v.pipe(
    text,
    checked((given, name) => parseWhole(given, name, [min, max])),
    v.toNumber(),
  );
  return v.pipe(v.optional(schema, String(initial)), v.metadata({ minimum: min, maximum: max }));
};

export const paging = {
  limit: described(whole(1, LARGEST_PAGE, DEFAULT_PAGE), "The largest number of entries in the answer."),
  cursor: v.optional(described(text, "`next` of the page before. Default: the first page.")),
};

export const sessionFilter = object({
  ...paging,
  user: v.optional(
    described(text, "The owner or a member. Default: the caller. Another user needs the scope `admin`."),
  ),
  all: v.optional(
    described(
      v.picklist(["true"], "true"),
      "With `true`, lists the sessions of all users. This needs the scope `admin`.",
    ),
  ),
  state: v.optional(v.picklist(SESSION_STATES, oneOf(SESSION_STATES))),
  purpose: v.optional(label),
});

export const newSession = object({
  id: v.optional(v.pipe(text, checked(validateSessionId), v.description("Default: a random id."))),
  purpose: v.optional(label),
  title: v.optional(described(title, "Default: the first line of the first prompt.")),
  model: v.optional(text),
  ttl: v.optional(duration),
  members: v.optional(members),
  ephemeral: v.optional(described(flag, "Whether to delete the session after its first turn.")),
  tools: v.optional(tools),
});

export const changedSession = object({
  purpose: v.optional(v.nullable(label)),
  title: v.optional(v.nullable(title)),
  ttl: v.optional(v.nullable(duration)),
  members: v.optional(members),
});

/** The field `interactive` of a prompt. */
const interactive = v.optional(
  described(
    v.boolean("true or false"),
    "Whether the client answers the permissions and questions of the agent (`/requests`). Default: true if " +
      "`session.approve` is `ask`. With false, nobody is asked.",
  ),
);

export const prompt = object({
  prompt: text,
  interactive,
  attachments: v.optional(attachments),
  timeout: turnTimeout,
});

export const transcriptQuery = object({
  turns: described(whole(0, 1_000_000, 1_000_000), "How many of the last turns to return. Default: all."),
});

const drainTimeout = v.optional(described(duration, "How long to wait for turns. Default: `drain.timeout`."));
export const drainBody = object({ drainTimeout });
export const stopBody = object({
  drainTimeout,
  force: v.optional(described(flag, "Whether to kill the server at once, even during a turn.")),
});

export const tokenFilter = object({ ...paging, user: v.optional(text) });
export const serverFilter = object({ user: v.optional(text), host: v.optional(text) });

const ALLOWED_SCOPES = `a list of at least one of ${oneOf(SCOPES)}`;
export const newToken = object({
  user: text,
  ttl: v.optional(described(text, "A duration, such as `30d`, or `never`. Default: `identity.tokenTtl`.")),
  scopes: v.optional(
    v.pipe(v.array(v.picklist(SCOPES, oneOf(SCOPES)), ALLOWED_SCOPES), v.minLength(1, ALLOWED_SCOPES)),
  ),
  sessionId: v.optional(described(text, "The only session that the token is valid for.")),
  label: v.optional(described(label, "The purpose of the token. Not blank.")),
});

// Answers. Clients ignore fields that they do not know.

const string = v.string();
const number = v.number();
const stringOrNull = v.nullable(string);
const numberOrNull = v.nullable(number);
export const time = described(string, "ISO 8601, in UTC.");
const timeOrNull = v.nullable(time);
const next = described(stringOrNull, "The cursor of the next page. Null: this is the last page.");

export const lease = v.object({
  sessionId: string,
  holder: string,
  fence: number,
  acquiredAt: time,
  expiresAt: time,
});

export const session = v.object({
  id: string,
  owner: string,
  purpose: stringOrNull,
  title: described(
    stringOrNull,
    "The given title, or the first line of the first prompt. Null if there is none, and in lists of the sessions of other users.",
  ),
  kind: v.picklist(["private", "collaborative"]),
  members: v.array(string),
  persistence: v.picklist(["persistent", "ephemeral"]),
  serverId: string,
  host: stringOrNull,
  stranded: v.boolean(),
  state: v.picklist(SESSION_STATES),
  model: stringOrNull,
  createdAt: time,
  lastUsedAt: time,
  ttlMs: described(numberOrNull, "How long the session is kept after its last use. Null: for ever."),
  expiresAt: described(timeOrNull, "When the session may be deleted if nobody uses it until then. Null: never."),
  sizeBytes: number,
  lease: v.nullable(lease),
});

export const oneSession = v.object({ session });
export const sessionPage = v.object({ sessions: v.array(session), next });

export const usage = v.object({
  requests: described(number, "Requests to the model."),
  inputTokens: number,
  outputTokens: number,
  cacheReadTokens: number,
  credits: described(numberOrNull, "Null if nothing reported it."),
});

export const turn = v.object({
  turn: described(string, "The id of the turn: that of its prompt in the session's history."),
  outcome: described(
    v.picklist(["completed", "aborted"]),
    "`aborted`: somebody aborted the turn, and `reply` is what the model had written so far.",
  ),
  reply: string,
  usage: described(v.nullable(usage), "Null if it is not known, because the process that ran the turn died."),
});

export const aborted = v.object({ aborted: described(v.boolean(), "Whether a turn was running.") });

export const transcriptEntry = v.object({
  at: time,
  role: v.picklist(["user", "assistant", "tool"]),
  text: string,
  turn: described(number, "The number of the turn in the session, from 1."),
  user: stringOrNull,
  attachments: v.array(string),
  tool: v.nullable(v.object({ name: string, outcome: string })),
  failure: stringOrNull,
  outcome: described(
    v.nullable(v.picklist(TURN_OUTCOMES)),
    "How the turn ended, in the entry that has `failure`. Null for all other entries.",
  ),
});

export const transcript = v.object({ session, entries: v.array(transcriptEntry) });

const limits = v.object({
  connections: numberOrNull,
  sessions: numberOrNull,
  requestsInFlight: numberOrNull,
  unreadBytes: numberOrNull,
  turnsPerMinute: numberOrNull,
  concurrentTurns: numberOrNull,
  tokensPerDay: numberOrNull,
  tokensPerMonth: numberOrNull,
});

export const caller = v.object({
  user: string,
  scopes: v.array(v.picklist(SCOPES)),
  groups: v.array(string),
  via: v.picklist(["token", "jwt", "github"]),
  tokenId: string,
  sessionId: described(stringOrNull, "The only session that the token is valid for. Null: all."),
  expiresAt: timeOrNull,
  limits: described(limits, "The limits of the user. Null: unlimited."),
  used: v.object({
    sessions: number,
    connections: described(number, "Connections at the front door of this host, and requests in flight."),
    turnsPerMinute: numberOrNull,
    concurrentTurns: numberOrNull,
    tokensPerDay: numberOrNull,
    tokensPerMonth: numberOrNull,
  }),
});

export const server = v.object({
  id: string,
  user: stringOrNull,
  isolation: v.picklist(["per-user", "shared"]),
  hostName: stringOrNull,
  away: v.boolean(),
  host: string,
  port: numberOrNull,
  url: stringOrNull,
  pid: numberOrNull,
  state: v.picklist(SERVER_STATES),
  failure: stringOrNull,
  startedAt: timeOrNull,
  uptimeMs: numberOrNull,
  memoryBytes: numberOrNull,
  sessions: numberOrNull,
  activeSessions: number,
  version: stringOrNull,
  sandbox: v.object({ mode: string, not: v.pipe(v.array(string), v.readonly()) }),
});

export const pool = v.object({ state: v.picklist(["open", "closed"]), reason: stringOrNull, drainedAt: timeOrNull });

export const stoppedServer = v.object({
  id: string,
  outcome: v.picklist(["drained", "killed", "already-stopped"]),
  cut: described(v.array(string), "Sessions whose turn was cut."),
});
export const stopped = v.object({ stopped: v.array(stoppedServer) });
export const restarted = v.object({ ...stopped.entries, servers: v.array(server) });

const tokenFields = {
  id: string,
  user: string,
  expiresAt: timeOrNull,
  scopes: v.array(v.picklist(SCOPES)),
  sessionId: stringOrNull,
  label: described(stringOrNull, "The purpose of the token, as its issuer wrote it."),
};
export const token = v.object({ ...tokenFields, createdAt: time, expired: v.boolean(), lastUsedAt: timeOrNull });
export const tokens = v.object({ tokens: v.array(token), next });
export const issued = v.object({
  token: described(string, "The token itself. No other answer ever shows it."),
  ...tokenFields,
});
