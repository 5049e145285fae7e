import { afterAll, beforeAll, expect, it } from "vitest";
import { isFleetError } from "../../src/base/errors.js";
import type { Fleet } from "../../src/fleet/fleet.js";
import { TestApi } from "../http/harness.js";

/*
 * Each row is an operation with one wrong value. All entry points must refuse the value with the same error, in the same
 * words except for the name of the value. The HTTP API has no operation where a request is missing.
 */

interface Entry {
  /** The name of the value in the library, in the HTTP API and on the command line. Default: the same everywhere. */
  names?: [library: string, http: string, command: string];
  value: unknown;
  library: (fleet: Fleet, value: never) => unknown;
  http?: [method: string, path: string, field?: string];
  command: string[];
}

const LONG = "x".repeat(300);
const ID = { names: ["sessionId", "id", "--id"] as [string, string, string] };
const USER = { user: "alice" };
/** With a field, the value is in the body. Otherwise it is a part of the path. */
const ROWS: Readonly<Record<string, Entry>> = {
  "create: a duration without a unit": {
    value: "5",
    library: async (fleet, ttl) => await fleet.sessions.create({ ...USER, ttl }),
    http: ["POST", "/v1/sessions", "ttl"],
    command: ["create", "--ttl"],
  },
  "create: an id with a slash": {
    ...ID,
    value: "a/b",
    library: async (fleet, sessionId) => await fleet.sessions.create({ ...USER, sessionId }),
    http: ["POST", "/v1/sessions", "id"],
    command: ["create", "--id"],
  },
  "create: a title of 300 characters": {
    value: LONG,
    library: async (fleet, title) => await fleet.sessions.create({ ...USER, title }),
    http: ["POST", "/v1/sessions", "title"],
    command: ["create", "--title"],
  },
  "create: a purpose of 300 characters": {
    value: LONG,
    library: async (fleet, purpose) => await fleet.sessions.create({ ...USER, purpose }),
    http: ["POST", "/v1/sessions", "purpose"],
    command: ["create", "--purpose"],
  },
  "create: a model with a space": {
    value: "gpt 5",
    library: async (fleet, model) => await fleet.sessions.create({ ...USER, model }),
    http: ["POST", "/v1/sessions", "model"],
    command: ["create", "--model"],
  },
  "list: an unknown state": {
    value: "busy",
    library: async (fleet, state) => await fleet.sessions.list({ ...USER, state }),
    http: ["GET", "/v1/sessions?state="],
    command: ["list", "--state"],
  },
  "list: an empty user": {
    value: "",
    library: async (fleet, user) => await fleet.sessions.list({ user }),
    http: ["GET", "/v1/sessions?user="],
    command: ["list", "--user"],
  },
  "transcript: a negative number": {
    value: "-1",
    library: async (fleet, turns) => await fleet.sessions.transcript("talk", { ...USER, turns }),
    http: ["GET", "/v1/sessions/talk/transcript?turns="],
    command: ["transcript", "talk", "--turns"],
  },
  "describe: an id with a space": {
    names: ["sessionId", "id", ""],
    value: "a b",
    library: async (fleet, id) => await fleet.sessions.get(id, USER),
    http: ["GET", "/v1/sessions/"],
    command: [],
  },
  "send: a blank prompt": {
    names: ["prompt", "prompt", "The prompt"],
    value: "  ",
    library: async (fleet, prompt) => await fleet.sessions.use("talk", prompt, USER),
    http: ["POST", "/v1/sessions/talk/turns", "prompt"],
    command: ["send", "talk"],
  },
  "send: a time limit that is no duration": {
    value: "soon",
    library: async (fleet, timeout) => await fleet.sessions.use("talk", "hi", { ...USER, timeout }),
    command: ["send", "talk", "hi", "--timeout"],
  },
  "send: a wait that is no duration": {
    value: "soon",
    library: async (fleet, wait) => await fleet.sessions.use("talk", "hi", { ...USER, wait }),
    command: ["send", "talk", "hi", "--wait"],
  },
  "token issue: a lifetime that is no duration": {
    value: "soon",
    library: async (fleet, ttl) => await fleet.tokens.issue("bob", { ttl }),
    http: ["POST", "/v1/tokens?user=bob", "ttl"],
    command: ["token", "issue", "--ttl"],
  },
  "token issue: an unknown scope": {
    names: ["scopes", "scopes", "--scope"],
    value: "root",
    library: async (fleet, scope) => await fleet.tokens.issue("bob", { scopes: [scope] }),
    http: ["POST", "/v1/tokens?user=bob", "scopes"],
    command: ["token", "issue", "--scope"],
  },
  "token issue: a blank label": {
    value: " ",
    library: async (fleet, label) => await fleet.tokens.issue("bob", { label }),
    http: ["POST", "/v1/tokens?user=bob", "label"],
    command: ["token", "issue", "--label"],
  },
  "token revoke: an unknown id": {
    value: "nobody",
    library: async (fleet, id) => await fleet.tokens.revoke({ ids: [id] }),
    http: ["DELETE", "/v1/tokens/"],
    command: ["token", "revoke"],
  },
  "limit set: zero": {
    names: ["turnsPerMinute", "", "--turns-per-minute"],
    value: "0",
    library: async (fleet, turnsPerMinute) => await fleet.limits.set("bob", { turnsPerMinute }),
    command: ["limit", "set", "--turns-per-minute"],
  },
  "usage: an unknown grouping": {
    value: "moon",
    library: async (fleet, by) => await fleet.usage.report({ by }),
    http: ["GET", "/v1/usage?by="],
    command: ["usage", "--by"],
  },
  "usage: a time that is none": {
    value: "moon",
    library: async (fleet, since) => await fleet.usage.report({ since }),
    http: ["GET", "/v1/usage?since="],
    command: ["usage", "--since"],
  },
  "events: an unknown type": {
    value: "moon",
    library: async (fleet, type) => await fleet.events.list({ type }),
    http: ["GET", "/v1/events?type="],
    command: ["events", "--type"],
  },
  "user suspend: a reason of 300 characters": {
    value: LONG,
    library: async (fleet, reason) => await fleet.users.suspend("bob", { reason }),
    http: ["POST", "/v1/users/bob/suspend", "reason"],
    command: ["user", "suspend", "bob", "--reason"],
  },
  "stop: an unknown server": {
    value: "nobody",
    library: async (fleet, id) => await fleet.servers.stop([id]),
    http: ["POST", "/v1/servers/nobody/stop"],
    command: ["stop"],
  },
  "stop: a drain time that is no duration": {
    names: ["drainTimeout", "drainTimeout", "--drain-timeout"],
    value: "soon",
    library: async (fleet, drainTimeout) => await fleet.servers.stop(["bob"], { drainTimeout }),
    http: ["POST", "/v1/servers/bob/stop", "drainTimeout"],
    command: ["stop", "bob", "--drain-timeout"],
  },
};

let at: TestApi;
let token: string;
beforeAll(async () => {
  at = await TestApi.open({ env: { COPILOTFLEET_USER: "alice" } });
  token = await at.token("alice", ["use", "read", "admin", "issue"]);
  await at.fleet.sessions.leave(await at.fleet.sessions.create({ ...USER, sessionId: "talk" }));
});
afterAll(async () => await at[Symbol.asyncDispose]());

async function fromLibrary({ library, value }: Entry): Promise<unknown> {
  const error: unknown = await Promise.resolve(library(at.fleet, value as never)).then(
    () => "it took the value",
    (thrown: unknown) => thrown,
  );
  return isFleetError(error) ? { code: error.code, message: error.message } : error;
}

async function fromHttp([method, start, field]: NonNullable<Entry["http"]>, value: unknown): Promise<unknown> {
  const [path = "", user] = start.split("?user=bob");
  const isInPath = field === undefined && method !== "POST";
  const own = field === "scopes" ? [value] : value;
  const body = { ...(user === undefined ? {} : { user: "bob" }), ...(field === undefined ? {} : { [field]: own }) };
  const url = isInPath ? `${start}${encodeURIComponent(String(value))}` : path;
  const { json } = await at.ask(method, url, isInPath ? { token } : { token, body });
  return { code: json.code, message: json.detail };
}

async function fromCommand({ command, value }: Entry): Promise<unknown> {
  const needsUser = ["token", "limit"].includes(command[0] ?? "") && command[1] !== "revoke";
  const { stdout } = await at.commands.run([
    ...command,
    String(value),
    ...(needsUser ? ["--user", "bob"] : []),
    "--json",
  ]);
  const { error } = JSON.parse(stdout) as { error: { code: string; message: string } };
  return { code: error.code, message: error.message };
}

it.each(Object.entries(ROWS))("%s is refused in the same words everywhere", async (_, entry) => {
  const flag = entry.command.findLast((word) => word.startsWith("--")) ?? "";
  const field = flag.slice(2);
  const [inLibrary, inHttp, onCommandLine] = entry.names ?? [field, field, flag];
  const named = (found: unknown, name: string) =>
    JSON.parse(JSON.stringify(found).replace(`"message":"${name} `, '"message":"NAME ')) as unknown;
  const expected = named(await fromLibrary(entry), inLibrary);
  expect(expected).toMatchObject({ code: expect.stringMatching(/^FLEET_(USAGE_INVALID|NAME_NOT_FOUND)$/) });
  if (entry.http !== undefined) expect(named(await fromHttp(entry.http, entry.value), inHttp)).toEqual(expected);
  if (entry.command.length > 0) expect(named(await fromCommand(entry), onCommandLine)).toEqual(expected);
});
