import type { Config } from "../../../config/schema.js";
import { FleetError, option, quote } from "../../../errors.js";
import { validateUser } from "../../../model/ids.js";
import { SESSION_STATES } from "../../../model/session.js";
import { validateTitle } from "../../../model/title.js";
import * as arg from "../../arguments.js";
import type { SessionGroup } from "../sessions.js";

/* The arguments of the methods of `SessionGroup`. */

const id = ["sessionId", arg.sessionId] as const;
const prompt = ["prompt", arg.text] as const;
const open = ["session", arg.session] as const;
const turn = {
  ...arg.TIMEOUT,
  ...arg.WAIT,
  ...arg.SIGNAL,
  onDelta: { check: arg.callback },
  onEvent: { check: arg.callback },
  onWait: { check: arg.callback },
  lease: { check: arg.object },
};
const use = {
  ...arg.OWN_USER,
  session: { check: arg.object },
  key: { check: arg.idempotencyKey },
  interactive: { check: arg.flag },
  onRequest: { check: arg.callback },
  askUntil: arg.SIGNAL.signal,
  attachments: { check: arg.objects },
  ...turn,
};
const answer = {
  decision: { check: arg.choice(["approve", "deny"]) },
  reason: { check: arg.text },
  answer: { check: arg.text },
};
const filter = {
  ...arg.USER,
  state: { check: arg.choice(SESSION_STATES) },
  purpose: { check: arg.text },
  host: { check: arg.text },
  model: { check: arg.text },
};
const title = (value: unknown, name: string) => validateTitle(arg.text(value, name), option(name));
const create = {
  ...arg.OWN_USER,
  sessionId: { check: arg.sessionId },
  purpose: { check: arg.text },
  title: { check: title },
  model: { check: arg.text },
  ttl: { check: arg.span },
  members: { check: arg.texts },
  availableTools: { check: arg.texts },
  ephemeral: { check: arg.flag },
  needsModel: { check: arg.flag },
  ...arg.WAIT,
  ...arg.SIGNAL,
};
const orNull = (check: (value: unknown, name: string) => unknown) => ({
  check: (value: unknown, name: string) => (value === null ? null : check(value, name)),
});
const update = {
  ...arg.OWN_USER,
  purpose: orNull(arg.text),
  title: orNull(title),
  ttl: orNull(arg.span),
  members: { check: arg.texts },
  expected: { check: arg.object },
};
const reading = { ...arg.OWN_USER, after: { check: arg.text }, follow: { check: arg.flag }, ...arg.SIGNAL };
const following = { turns: { check: arg.whole }, follow: { check: arg.flag }, ...arg.SIGNAL };
export const SESSION_ARGUMENTS: { readonly [Name in keyof SessionGroup]: readonly arg.Argument[] } = {
  create: [["options", arg.options(create)]],
  resume: [id, ["options", arg.options({ ...arg.OWN_USER, ...arg.WAIT, ...arg.SIGNAL })]],
  send: [open, prompt, arg.optional(turn)],
  use: [id, prompt, ["options", arg.options(use)]],
  turn: [id, prompt, ["options", arg.options(use)]],
  requests: [id, ["options", arg.options(arg.OWN_USER)]],
  answer: [id, ["requestId", arg.text], ["options", arg.options({ ...arg.OWN_USER, ...answer })]],
  followRequests: [id, ["options", arg.options({ ...arg.OWN_USER, ...arg.SIGNAL })]],
  export: [
    id,
    ["options", arg.options({ ...arg.OWN_USER, output: arg.required(arg.text), ...arg.WAIT, ...arg.SIGNAL })],
  ],
  import: [
    ["file", arg.text],
    ["options", arg.options({ ...arg.OWN_USER, sessionId: { check: arg.sessionId }, ...arg.SIGNAL })],
  ],
  leave: [open, arg.optional({ park: { check: arg.flag } })],
  list: [arg.optional(filter)],
  find: [["text", arg.text], arg.optional(arg.USER)],
  matching: [["texts", arg.texts], arg.optional(arg.USER)],
  get: [id, ["options", arg.options(arg.OWN_USER)]],
  count: [arg.user],
  update: [id, ["options", arg.options(update)]],
  abort: [id, ["options", arg.options(arg.OWN_USER)]],
  transcript: [id, ["options", arg.options({ ...arg.OWN_USER, turns: { check: arg.whole }, ...arg.SIGNAL })]],
  followTranscript: [id, ["options", arg.options({ ...arg.OWN_USER, ...following })]],
  followEvents: [id, ["options", arg.options(reading)]],
  evict: [
    ["what", arg.oneOf({ ids: { check: arg.sessionIds }, max: { check: arg.whole } })],
    arg.optional(arg.PROGRESS),
  ],
  gc: [
    arg.optional({
      ttl: { check: arg.span },
      dryRun: { check: arg.flag },
      ...arg.USER,
      sessionIds: { check: arg.sessionIds },
      ...arg.PROGRESS,
      ...arg.SIGNAL,
    }),
  ],
  delete: [["sessionIds", arg.sessionIds], arg.optional({ ...arg.USER, ignoreNotFound: { check: arg.flag } })],
};

/**
 * Checks the tools of a new session. @throws FleetError `FLEET_USAGE_INVALID` when the configuration does not allow one
 * of them.
 */
export function checkedTools(
  tools: readonly string[] | undefined,
  { session, isolation }: Pick<Config, "session" | "isolation">,
): readonly string[] | undefined {
  const allowed = session.tools ?? (isolation === "shared" ? [] : null);
  const denied = tools?.find((name) => allowed !== null && !allowed.includes(name));
  if (denied === undefined) return tools;
  const message = `${option("availableTools")} has ${quote(denied)}, which session.tools of the configuration does not allow.`;
  throw new FleetError("FLEET_USAGE_INVALID", message, { suggestions: ["copilotfleet config get session.tools"] });
}

/** Checks the members of a session, and removes duplicates. */
export function validateMembers(members: readonly string[], owner: string): string[] {
  const valid = [...new Set(members.map((member) => validateUser(member, option("members"))))];
  if (!valid.includes(owner)) return valid;
  const message = `${option("members")} ${quote(owner)} is the owner: only other users are members.`;
  throw new FleetError("FLEET_USAGE_INVALID", message);
}
