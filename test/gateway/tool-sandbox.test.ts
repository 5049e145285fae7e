import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { failureOfBwrap } from "../../src/sandbox/tool-sandbox.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";
import { unused } from "../fixtures/sessions/unused.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

const problem = await failureOfBwrap(process.env);
if (problem !== null) console.warn(`the sandbox of the tools is not tested: ${problem}`);

const SESSION = { host: "owner", approve: "ask" } as const;
const OFF = { enabled: false };
const APPROVE = { kind: "approve-once" as const };

/** A folder that neither the fleet nor the Copilot program gives to tools. It must not be in a temporary folder. */
const outside = mkdtempSync(join(homedir(), ".copilotfleet-test-"));
writeFileSync(join(outside, "secret"), "reads-secret\n");
afterAll(() => rmSync(outside, { recursive: true, force: true }));

/** A prompt for a command that tries to reach the server's process, the network, and the folder `outside`. */
function probe(pid: number, url: string): string {
  const tries = [
    `test -e /proc/${pid} && echo sees-server`,
    `(echo > /dev/tcp/${url.replace(":", "/")}) 2>&- && echo has-network`,
    `cat '${outside}/secret' 2>&-`,
    `(echo attack > '${outside}/attack') 2>&-`,
    "echo end",
  ];
  return `!tool bash ${JSON.stringify({ command: tries.join("; "), description: "looks around" })}`;
}

describe.skipIf(problem !== null)("with sandbox.tools bwrap,", () => {
  let at: DoorFleet;
  let client: RawClient;
  let pid: number;
  let answering: NodeJS.Timeout;
  beforeAll(async () => {
    at = await DoorFleet.open({ config: { session: SESSION, sandbox: { mode: "none", tools: "bwrap" } } });
    await at.fleet.servers.spawn("alice");
    pid = (await at.serverOf("alice")).pid;
    client = await RawClient.as(at.url, await at.token("alice"), true);
    answering = approveAll(client);
  });
  afterAll(async () => {
    clearInterval(answering);
    client.socket.destroy();
    await at[Symbol.asyncDispose]();
  });

  const create = async (settings: object = {}) => {
    const sessionId = unused("tools");
    await client.requestOk("session.create", { sessionId, requestPermission: true, ...settings });
    return sessionId;
  };
  /** The words that the agent's command printed in its turn. */
  const seen = async (sessionId: string) => {
    const before = client.received.length;
    await client.turnOk(sessionId, probe(pid, at.url));
    expect(existsSync(join(outside, "attack"))).toBe(false);
    return resultOf(client, before);
  };

  it("the front door opens sessions whose tools can reach no server process, no network and no files in other folders", async () => {
    expect(await seen(await create())).toEqual(["end"]);
  });

  it("the front door refuses each client request that would change the sandbox of the tools", async () => {
    const sessionId = await create();
    for (const [method, params] of [
      ["session.create", { sessionId: "never", sandboxConfig: OFF }],
      ["session.resume", { sessionId, sandboxConfig: OFF }],
      ["session.resume", { sessionId, sandboxConfig: null }],
      ["session.options.update", { sessionId, sandboxConfig: OFF }],
      ["session.options.update", { sessionId, sandboxConfig: null }],
      ["session.options.update", { sessionId, sandboxConfig: { enabled: true } }],
      ["session.sandbox.disableForSession", { sessionId, requestId: "r" }],
    ] as const) {
      const { error } = await client.request(method, params);
      expect(error, `${method} ${JSON.stringify(params)}`).toMatchObject({ data: { code: "FLEET_METHOD_DENIED" } });
      expect(error?.message).toContain("sandbox.tools");
    }
    expect(await seen(sessionId)).toEqual(["end"]);
  });

  it("the sandbox of the tools stays on after /sandbox disable, changes of settings and a reload of the session", async () => {
    const sessionId = await create({ workingDirectory: "/" });
    await client.request("session.commands.invoke", { sessionId, name: "sandbox", input: "disable" });
    await client.request("user.settings.set", { settings: { sandbox: OFF } });
    await client.requestOk("session.options.update", { sessionId, clientName: "x" });
    expect(await seen(sessionId)).toEqual(["end"]);
    await client.requestOk("sessions.close", { sessionId });
    await client.requestOk("session.resume", { sessionId, requestPermission: true });
    expect(await seen(sessionId)).toEqual(["end"]);
    expect(await seen(await create())).toEqual(["end"]);
  });

  it("a session of a program that uses the library has the sandbox of the tools, too", async () => {
    const session = await at.fleet.sessions.create({ user: "alice", onPermissionRequest: () => APPROVE });
    const { text } = await at.fleet.sessions.send(session, probe(pid, at.url));
    expect(text.match(/sees-server|has-network|reads-secret|end/g)).toEqual(["end"]);
  });
});

it("without sandbox.tools, an agent's command reaches the server process, the network and files in other folders", async () => {
  await using at = await DoorFleet.open({ config: { session: SESSION, sandbox: { mode: "none" } } });
  const session = await at.fleet.sessions.create({ user: "alice", onPermissionRequest: () => APPROVE });
  const { text } = await at.fleet.sessions.send(session, probe((await at.serverOf("alice")).pid, at.url));
  expect(text.match(/sees-server|has-network|reads-secret|end/g)).toEqual([
    "sees-server",
    "has-network",
    "reads-secret",
    "end",
  ]);
  expect(existsSync(join(outside, "attack"))).toBe(true);
});

it.skipIf(bwrapProblem !== undefined)(
  "in the fleet's sandbox, an agent's command fails if the client also asked for a tool sandbox",
  async () => {
    await using at = await DoorFleet.open({ config: { session: SESSION, sandbox: { mode: "bwrap" } } });
    const client = await RawClient.as(at.url, await at.token("alice"));
    const answering = approveAll(client);
    const sandboxConfig = { enabled: true, userPolicy: { network: { allowOutbound: false } } };
    await client.requestOk("session.create", { sessionId: "mine", requestPermission: true, sandboxConfig });
    await client.turnOk("mine", probe(1, at.url));
    clearInterval(answering);
    expect(resultOf(client, 0)).toEqual([]);
  },
);

it("a server does not start with sandbox.tools bwrap if bwrap does not work", async () => {
  const config = { session: SESSION, sandbox: { mode: "none", tools: "bwrap" } };
  await using at = await DoorFleet.open({ env: { PATH: "/nowhere" }, config });
  await expect(at.fleet.servers.spawn("alice")).rejects.toMatchObject({
    code: "FLEET_SANDBOX_UNUSABLE",
    message: expect.stringContaining('sandbox.tools is "bwrap", but bwrap failed'),
  });
});

/** Approves each tool that the server asks about. */
function approveAll(client: RawClient): NodeJS.Timeout {
  let next = 0;
  return setInterval(() => {
    for (const { params } of client.received.slice(next)) {
      next++;
      const event = params?.event as { type: string; data: { requestId: string } } | undefined;
      if (event?.type !== "permission.requested") continue;
      const { requestId } = event.data;
      const answer = { sessionId: params?.sessionId, requestId, result: APPROVE };
      client.send({ id: requestId, method: "session.permissions.handlePendingPermissionRequest", params: answer });
    }
  }, 5);
}

/** The words that the agent's command printed. */
function resultOf(client: RawClient, from: number): string[] {
  const results = client.received.slice(from).flatMap(({ params }) => {
    const event = params?.event as { type?: string; data?: { result?: { content?: string } } } | undefined;
    return event?.type === "tool.execution_complete" ? [event.data?.result?.content ?? ""] : [];
  });
  expect(results).toHaveLength(1);
  return results[0]?.match(/sees-server|has-network|reads-secret|end$/gm) ?? [];
}
