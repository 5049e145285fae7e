import { expect, it } from "vitest";
import { DoorFleet } from "../door/harness.js";
import { RawClient } from "../door/raw-client.js";

const SHELL = { kind: "shell", argument: null };
const BASH = '!tool bash {"command":"echo permitted-output","description":"x"}';

/** Requests that approve later tool calls. */
const REQUESTS: [method: string, params: object][] = [
  ["session.permissions.setApproveAll", { enabled: true }],
  ["session.permissions.setMode", { mode: "allow-all" }],
  ["session.permissions.configure", { approveAllToolPermissionRequests: true }],
  ["session.permissions.configure", { rules: { approved: [SHELL], denied: [] } }],
  ["session.permissions.modifyRules", { scope: "session", add: [SHELL] }],
];

async function askingFleet() {
  const at = await DoorFleet.open({ config: { session: { approve: "ask", host: "owner" } } });
  const asked: string[] = [];
  const onPermissionRequest = ({ kind }: { kind: string }) => {
    asked.push(kind);
    return { kind: "approve-once" as const };
  };
  return { at, asked, onPermissionRequest };
}

/** Sends a request as an approved command can, because it can find the token of its own server. */
async function sendAsAgent(at: DoorFleet, method: string, params: object): Promise<void> {
  const { url, token } = await at.fleet.clients.connectInfo("alice");
  const agent = await RawClient.as(url, token);
  const answer = await agent.request(method, params);
  // Older runtimes have another method for the mode.
  const isOlder = method.endsWith("setMode") && answer.error !== undefined;
  const final = isOlder ? await agent.request("session.permissions.setAllowAll", { ...params, enabled: true }) : answer;
  expect(final).not.toHaveProperty("error");
}

it.each(REQUESTS)(
  "an agent's own %s %j does not keep the fleet from asking about the tool calls of the next turn",
  async (method, params) => {
    const { at, asked, onPermissionRequest } = await askingFleet();
    await using _ = at;
    const session = await at.fleet.sessions.create({ user: "alice", onPermissionRequest });
    await at.fleet.sessions.send(session, BASH);
    await sendAsAgent(at, method, { sessionId: session.sessionId, ...params });
    expect((await at.fleet.sessions.send(session, BASH)).text).toContain("permitted-output");
    expect(asked).toEqual(["shell", "shell"]);
  },
);

it("an agent's own setApproveAll does not keep the front door's client from being asked, but the client's own does", async () => {
  const { at, asked, onPermissionRequest } = await askingFleet();
  await using _ = at;
  const client = await at.client("alice");
  const session = await client.createSession({ onPermissionRequest });
  await session.sendAndWait(BASH);
  await sendAsAgent(at, "session.permissions.setApproveAll", { sessionId: session.sessionId, enabled: true });
  await session.sendAndWait(BASH);
  expect(asked).toEqual(["shell", "shell"]);
  await session.rpc.permissions.setApproveAll({ enabled: true });
  expect((await session.sendAndWait(BASH))?.data.content).toContain("permitted-output");
  expect(asked).toEqual(["shell", "shell"]);
});
