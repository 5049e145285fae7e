import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { newSessionRecord } from "../../src/base/session.js";
import { actionOf, handlingOf, knownMethods } from "../../src/door/policy/methods.js";
import { ROUTES } from "../../src/http/app.js";
import {
  type Action,
  type Decision,
  decide,
  permit,
  type Relation,
  relationTo,
  SCOPES,
  type Scope,
} from "../../src/identity/identity.js";

const RELATIONS: readonly Relation[] = ["own", "member", "foreign", "none"];

/** For each action and scope, the decisions for {@link RELATIONS}: a(llowed), h(idden), s(cope is missing). */
const EXPECTED: Readonly<Record<Action, Readonly<Record<Scope, string>>>> = {
  read: { read: "aaha", use: "aaha", admin: "aaha", issue: "ssss" },
  use: { read: "ssss", use: "aaha", admin: "aaha", issue: "ssss" },
  readAll: { read: "aaha", use: "aaha", admin: "aaha", issue: "ssss" },
  useAll: { read: "ssss", use: "aaha", admin: "aaha", issue: "ssss" },
  manage: { read: "ssss", use: "ssss", admin: "aaaa", issue: "ssss" },
  issue: { read: "ssss", use: "ssss", admin: "ssss", issue: "aaha" },
};

/** The commands, grouped by their action. Those in `local` touch neither users nor servers. */
const COMMANDS = {
  read: "transcript",
  use: "send resume lock unlock export",
  readAll: "",
  useAll: "create chat import",
  manage: `connect delete describe doctor drain events events/verify evict gc limit/clear limit/set limit/show list logs open ps restart route serve spawn stop top
    store/migrate store/sign token/list token/revoke token/rotate usage user/export user/list user/purge user/resume user/suspend`,
  issue: "token/issue",
  local: `autocomplete explain help init proxy smoke trust version config/check config/get config/path config/schema
    config/show deploy/compose deploy/kubernetes deploy/systemd`,
} as const;

const words = (text: string) => text.split(/\s+/).filter((word) => word !== "");

/** The action of each method of the front door, as `methods.txt` lists it. */
const LISTED = new Map<string, string>();
let action = "";
for (const word of words(readFileSync(new URL("methods.txt", import.meta.url), "utf8"))) {
  if (word.endsWith(":")) action = word.slice(0, -1);
  else LISTED.set(word, action);
}

function expectCells(kind: Action, name: string): void {
  for (const scope of SCOPES) {
    for (const [at, relation] of RELATIONS.entries()) {
      const decision = decide({ user: "alice", scopes: [scope] }, kind, relation);
      expect(decision[0], `${name} with ${scope}, ${relation}`).toBe(EXPECTED[kind][scope][at]);
    }
  }
}

describe("the policy", () => {
  const methods = knownMethods().filter((method) => handlingOf(method).handler !== "refuse");

  it("methods.txt has every method of the front door that some client may use, and no other", () => {
    expect([...LISTED.keys()].sort()).toEqual(methods.sort());
  });

  it("the policy decides about every method of the front door, for each scope and relation to a session", () => {
    for (const method of methods) {
      const kind = actionOf(handlingOf(method));
      expect(kind, method).toBe(LISTED.get(method));
      expectCells(kind, method);
    }
  });

  it("every command has an action in the policy, and an identity with all scopes may do what an admin may, and issue tokens", () => {
    const folder = new URL("../../src/cli/commands/", import.meta.url);
    const files = readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".ts"));
    expect(words(Object.values(COMMANDS).join(" ")).sort()).toEqual(files.map((name) => name.slice(0, -3)).sort());
    const account = { user: "alice", scopes: SCOPES };
    for (const kind of Object.keys(EXPECTED) as Action[]) {
      for (const command of words(COMMANDS[kind])) expectCells(kind, command);
      expect(RELATIONS.map((relation) => decide(account, kind, relation)[0]).join("")).toBe(
        EXPECTED[kind][kind === "issue" ? "issue" : "admin"],
      );
    }
  });

  it("the policy decides about every HTTP route, and only routes about a session depend on the session", () => {
    expect(ROUTES.length).toBeGreaterThan(10);
    for (const route of ROUTES) {
      expectCells(route.action, route.name);
      expect(route.about === "session", route.name).toBe(
        route.action === "use" || route.path.includes("/sessions/{id}"),
      );
    }
  });

  it("the policy allows nothing without a scope", () => {
    for (const kind of Object.keys(EXPECTED) as Action[])
      for (const relation of RELATIONS) expect(decide({ user: "a", scopes: [] }, kind, relation)).toBe("scope");
  });

  it("the policy limits an identity that is bound to a session to that session, even with the scope admin", () => {
    const bound = { user: "alice", scopes: SCOPES, sessionId: "one" };
    const decisions = (kind: Action): Decision[] => RELATIONS.map((relation) => decide(bound, kind, relation));
    for (const kind of ["read", "use"] as const)
      expect(decisions(kind)).toEqual(["allowed", "allowed", "hidden", "allowed"]);
    for (const kind of ["readAll", "useAll", "manage"] as const)
      expect(decisions(kind)).toEqual(["session", "session", "session", "session"]);
    const record = (id: string, owner = "alice", members: string[] = []) =>
      newSessionRecord({ id, owner, members }, { serverId: "s" });
    expect(relationTo(bound, record("one"))).toBe("own");
    expect(relationTo(bound, record("one", "bob", ["alice"]))).toBe("member");
    expect(relationTo(bound, record("one", "bob"))).toBe("foreign");
    expect(relationTo(bound, record("two"))).toBe("foreign");
    expect(relationTo(bound, null)).toBe("foreign");
  });

  it("the policy's error names the missing scope, or the only session that the credential is valid for", () => {
    const reader = { user: "alice", scopes: ["read"] } as const;
    expect(() => permit(reader, "use", "foreign", "session.send")).toThrow(
      expect.objectContaining({
        code: "FLEET_SCOPE_MISSING",
        exit: 4,
        message: '"session.send" needs the scope "use". The scopes of this credential: "read".',
      }),
    );
    expect(() => permit({ ...reader, sessionId: "one" }, "readAll", "none", "sessions.getSizes")).toThrow(
      '"sessions.getSizes" reaches more than session "one", and this credential is valid only for that session.',
    );
    expect(permit(reader, "read", "foreign", "session.getMessages")).toBe(false);
    expect(permit(reader, "read", "member", "session.getMessages")).toBe(true);
  });
});
