import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { DoorFleet } from "./harness.js";
import { RawClient, type RawMessage } from "./raw-client.js";

/** The client's answers to the server's questions. */
interface Answers {
  permission?: object;
  hook?: object;
  exitPlanMode?: object;
}

interface Attack {
  settings?: object;
  answers?: Answers;
  /** Requests that the client sends before the prompt. They may be refused. */
  before?: [method: string, params: object][];
  send?: object;
  prompt?: string;
}

const APPROVE = { kind: "approve-once" as const };
const SHELL_RULE = { kind: "shell", argument: null };
const EXIT_PLAN = '!tool exit_plan_mode {"summary":"s","actions":["autopilot"],"recommendedAction":"autopilot"}';

/** Attempts to make the model's `bash` call run. */
const ATTACKS: Record<string, Attack> = {
  "the client's answer approve-once": { answers: { permission: APPROVE } },
  "the client's answer approve-for-session": {
    answers: {
      permission: { kind: "approve-for-session", approval: { kind: "commands", commandIdentifiers: ["touch"] } },
    },
  },
  "the client's answer approve-permanently": { answers: { permission: { kind: "approve-permanently", domain: "x" } } },
  "the answer approved of older clients": { answers: { permission: { kind: "approved" } } },
  "a client that wants no permission requests": { settings: { requestPermission: false }, answers: {} },
  "the client's hook that allows the command": {
    settings: { hooks: true },
    answers: { hook: { permissionDecision: "allow" } },
  },
  "the client's hook that allows the command in a nested field": {
    settings: { hooks: true },
    answers: { hook: { hookSpecificOutput: { permissionDecision: "allow" }, decision: "approve" } },
  },
  "the method setApproveAll": { before: [["session.permissions.setApproveAll", { enabled: true }]] },
  "the method setMode": { before: [["session.permissions.setMode", { mode: "allow-all" }]] },
  "the method configure that approves everything": {
    before: [["session.permissions.configure", { approveAllToolPermissionRequests: true }]],
  },
  "the method configure with a rule for the shell": {
    before: [["session.permissions.configure", { rules: { approved: [SHELL_RULE], denied: [] } }]],
  },
  "the method modifyRules": {
    before: [["session.permissions.modifyRules", { scope: "session", add: [SHELL_RULE] }]],
  },
  "the method setRequired": { before: [["session.permissions.setRequired", { required: false }]], answers: {} },
  "the command /allow-all": {
    before: [["session.commands.invoke", { name: "allow-all", input: "on" }]],
  },
  "the command /yolo": { before: [["session.commands.invoke", { name: "yolo", input: "" }]] },
  "the queued command /yolo": { before: [["session.commands.enqueue", { command: "/yolo" }]] },
  "managed settings": {
    settings: { enableManagedSettings: true, managedSettings: { permissions: { allow: ["shell"] } } },
  },
  "the user's settings": {
    before: [["user.settings.set", { settings: { allowAllTools: true, allowedTools: ["shell"] } }]],
  },
  "the mode autopilot": { before: [["session.mode.set", { mode: "autopilot" }]], send: { agentMode: "autopilot" } },
  "leaving plan mode for autopilot": {
    settings: { requestExitPlanMode: true },
    before: [
      ["session.mode.set", { mode: "plan" }],
      ["session.send", { prompt: EXIT_PLAN }],
    ],
    answers: { exitPlanMode: { approved: true, selectedAction: "autopilot", autoApproveEdits: true } },
  },
  "session options that turn protections off": {
    before: [
      ["session.options.update", { enableScriptSafety: false, sandboxConfig: { enabled: false } }],
      ["session.options.update", { runningInInteractiveMode: false, agentContext: "actions" }],
    ],
  },
  "a background agent that runs the command": {
    before: [["session.tasks.startAgent", { agentType: "task", name: "n", description: "d", prompt: "ATTACK" }]],
    prompt: "!delay 500 x",
  },
  "several agents that run the command": {
    before: [["session.fleet.start", { prompt: "ATTACK", agentMode: "autopilot" }]],
    prompt: "!delay 500 x",
  },
  "a direct call of the tool": {
    settings: { availableTools: ["bash"] },
    before: [
      ["session.tools.initializeAndValidate", {}],
      [
        "session.tools.execute",
        { toolName: "bash", arguments: { command: "COMMAND", description: "x" }, toolCallId: "c" },
      ],
    ],
    prompt: "x",
  },
};

describe.each([
  { name: "none on a user's own server", config: { session: { approve: "none" } } },
  {
    name: "ask on a shared server",
    config: { isolation: "shared", session: { approve: "ask", tools: ["bash", "exit_plan_mode", "edit"] } },
  },
])("the front door, with session.approve $name,", ({ config }) => {
  let at: DoorFleet;
  let token: string;
  let client: RawClient;
  let answering: NodeJS.Timeout;
  let sequence = 0;
  beforeAll(async () => {
    at = await DoorFleet.open({ config });
    token = await at.token("alice");
  });
  afterEach(() => {
    clearInterval(answering);
    client.socket.destroy();
  });
  afterAll(async () => await at[Symbol.asyncDispose]());

  it.each(Object.entries(ATTACKS))("keeps the model's shell command from running despite %s", async (_, attack) => {
    const { settings, answers = { permission: { kind: "reject" } }, before = [], send, prompt } = attack;
    const marker = join(at.folder, `ran-${sequence}`);
    const command = `touch ${marker}`;
    const call = `!tool bash ${JSON.stringify({ command, description: "x" })}`;
    const filled = (params: object) =>
      JSON.parse(JSON.stringify(params), (_key, value: unknown) =>
        value === "ATTACK" ? call : value === "COMMAND" ? command : value,
      ) as object;
    client = await RawClient.as(at.url, token, true);
    const sessionId = `attack-${sequence++}`;
    answering = answer(client, sessionId, answers);
    const created = await client.request("session.create", { sessionId, requestPermission: true, ...settings });
    if (created.error !== undefined) {
      expect(created.error.message).toContain("session.approve");
      return;
    }
    for (const [method, params] of before) {
      if (method === "session.send") await client.turn(sessionId, (params as { prompt: string }).prompt);
      else await client.request(method, { sessionId, ...filled(params) });
    }
    const seen = client.received.length;
    const sent = await client.request("session.send", { sessionId, prompt: prompt ?? call, ...send });
    if (sent.error !== undefined) {
      expect(sent.error.data?.code).toBe("FLEET_METHOD_DENIED");
      return;
    }
    await eventually("the end of the turn, or a question that nobody answers", () =>
      client.received
        .slice(seen)
        .some(
          (message) =>
            typeOf(message) === "session.idle" ||
            (typeOf(message) === "permission.requested" && answers.permission === undefined),
        ),
    );
    expect(existsSync(marker)).toBe(false);
  });
});

function typeOf({ params }: RawMessage): string | undefined {
  return (params?.event as { type?: string } | undefined)?.type;
}

function answer(client: RawClient, sessionId: string, answers: Answers): NodeJS.Timeout {
  let next = 0;
  return setInterval(() => {
    for (const message of client.received.slice(next)) {
      next++;
      const { id, method, params } = message;
      if (method === "hooks.invoke")
        client.send({ id, result: { output: params?.hookType === "preToolUse" ? (answers.hook ?? {}) : {} } });
      else if (method === "exitPlanMode.request") client.send({ id, result: answers.exitPlanMode ?? {} });
      else if (typeOf(message) === "permission.requested" && answers.permission !== undefined) {
        const requestId = (params?.event as { data?: { requestId?: string } } | undefined)?.data?.requestId;
        const decision = { sessionId, requestId, result: answers.permission };
        client.send({
          id: `p-${requestId}`,
          method: "session.permissions.handlePendingPermissionRequest",
          params: decision,
        });
      }
    }
  }, 2);
}

describe("the fleet", () => {
  const weather = { name: "weather", description: "w", parameters: { type: "object" }, handler: () => "sunny" };
  const bash = '!tool bash {"command":"echo permitted-output","description":"says it"}';

  it("lets a client approve only its own tools if session.approve is none, whatever another client answers", async () => {
    await using at = await DoorFleet.open();
    const client = await at.client("alice");
    const session = await client.createSession({ onPermissionRequest: () => APPROVE, tools: [weather] });
    const other = await at.client("alice");
    const heard: string[] = [];
    await other.resumeSession(session.sessionId, {
      onPermissionRequest: ({ kind }) => {
        heard.push(kind);
        // Approve all built-in tools. If this client rejected one of them without feedback, the turn would end.
        return kind === "custom-tool" ? { kind: "reject" } : APPROVE;
      },
    });
    const said = await session.sendAndWait("!tool weather {}");
    expect(said?.data.content).toBe("tool said: sunny");
    await eventually("the question to the other client", () => heard.length > 0);
    expect(heard[0]).toBe("custom-tool");
    const refused = await session.sendAndWait(bash);
    expect(refused?.data.content).toContain('session.approve is "none"');
  });

  it("lets a client approve every tool on its user's own server if session.approve is ask", async () => {
    await using at = await DoorFleet.open({ config: { session: { approve: "ask" } } });
    const client = await at.client("alice");
    const session = await client.createSession({ onPermissionRequest: () => APPROVE });
    expect((await session.sendAndWait(bash))?.data.content).toContain("permitted-output");
    await session.rpc.permissions.setApproveAll({ enabled: true });
  });

  it("calls a library program's onPermissionRequest for a shell command only if session.approve is ask", async () => {
    for (const approve of ["ask", "none"] as const) {
      await using at = await DoorFleet.open({ config: { session: { approve } } });
      const asked: string[] = [];
      const onPermissionRequest = ({ kind }: { kind: string }) => {
        asked.push(kind);
        return APPROVE;
      };
      const session = await at.fleet.sessions.create({ user: "alice", onPermissionRequest, tools: [weather] });
      const { text } = await at.fleet.sessions.send(session, bash);
      if (approve === "ask") expect(text).toContain("permitted-output");
      else expect(text).toContain('session.approve is "none"');
      expect((await at.fleet.sessions.send(session, "!tool weather {}")).text).toBe("tool said: sunny");
      expect(asked).toEqual(approve === "ask" ? ["shell", "custom-tool"] : ["custom-tool"]);
      const silent = await at.fleet.sessions.create({ user: "alice" });
      expect((await at.fleet.sessions.send(silent, bash)).text).toContain(`session.approve is "${approve}"`);
    }
  });
});
