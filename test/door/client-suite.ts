import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import {
  approveAll,
  type CopilotClient,
  type CopilotClientOptions,
  type CopilotRequestContext,
  CopilotRequestHandler,
  type CopilotSession,
  type SessionConfig,
  type SessionEvent,
} from "@github/copilot-sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { unused } from "../fixtures/sessions/unused.js";

export interface Connected {
  /** A new client of the same user. */
  connect: () => Promise<CopilotClient>;
  /** The settings of the model that a client must provide itself. */
  settings: Partial<SessionConfig>;
}

/** Sends a request for which this version of the SDK has no function. */
async function request(client: CopilotClient, method: string, params: object): Promise<unknown> {
  const { connection } = client as unknown as { connection: { sendRequest(method: string, params: object): unknown } };
  return await connection.sendRequest(method, params);
}

/** The token that this client sends with `connect`. */
function tokenOf(client: CopilotClient): string | undefined {
  return (client as unknown as { effectiveConnectionToken?: string }).effectiveConnectionToken;
}

/** The session settings with which a front door lets a client do everything in this suite. */
export const OPEN_TO_CLIENTS = { approve: "ask", host: "owner" } as const;

export interface SuiteOptions {
  /**
   * Whether the tested path differs from another tested path only by a program that passes bytes on without reading
   * them. If so, skips the tests that such a program cannot break, unless `SOAK` is set.
   */
  isPassedOn?: boolean;
}

/** Tests what a client can do at its own server through the unmodified SDK. */
export function describeClient(
  name: string,
  open: () => Promise<Connected & AsyncDisposable>,
  { isPassedOn = false }: SuiteOptions = {},
): void {
  /** For a test that can fail only if a program between the client and the server reads the messages. */
  const atReader = it.skipIf(isPassedOn && process.env.SOAK === undefined);
  describe(`the fleet, for a client connected ${name},`, () => {
    let at: Connected & AsyncDisposable;
    let client: CopilotClient;
    beforeAll(async () => {
      at = await open();
      client = await at.connect();
    });
    afterAll(async () => {
      await at[Symbol.asyncDispose]();
    });

    const create = async (settings: Partial<SessionConfig> = {}, by = client): Promise<CopilotSession> =>
      await by.createSession({ onPermissionRequest: approveAll, ...at.settings, ...settings });
    const say = async (session: CopilotSession, prompt: string) =>
      (await session.sendAndWait(prompt, 20_000))?.data.content;

    atReader("answers a client's ping and its questions about the server's status", async () => {
      expect(await client.ping("hello")).toMatchObject({ message: "pong: hello", protocolVersion: 3 });
      expect(await client.getStatus()).toMatchObject({ protocolVersion: 3, version: expect.any(String) });
      expect(await client.getAuthStatus()).toMatchObject({ isAuthenticated: false });
    });

    it("lets a client create a session and get replies in it", async () => {
      const session = await create();
      expect(await say(session, "one")).toBe("you said: one");
      expect(await say(session, "two")).toBe("you said: two");
      const types = (await session.getEvents()).map(({ type }) => type);
      expect(types.filter((type) => type === "user.message")).toHaveLength(2);
      expect(types.filter((type) => type === "assistant.message")).toHaveLength(2);
    });

    atReader("creates a session with the id that the client asks for", async () => {
      const sessionId = unused("wanted");
      const session = await create({ sessionId });
      expect(session.sessionId).toBe(sessionId);
      expect(await say(session, "hi")).toBe("you said: hi");
    });

    it("lets a client leave a session and resume it with its history on another connection", async () => {
      const session = await create();
      await say(session, "remember");
      await session.disconnect();
      const other = await at.connect();
      const again = await other.resumeSession(session.sessionId, { onPermissionRequest: approveAll, ...at.settings });
      expect(await say(again, "more")).toBe("you said: more");
      const said = (await again.getEvents()).filter(({ type }) => type === "user.message");
      expect(said).toHaveLength(2);
      await other.stop();
    });

    atReader("lets a client list, describe and delete its sessions", async () => {
      const session = await create();
      await say(session, "hi");
      const listed = (await client.listSessions()).map(({ sessionId }) => sessionId);
      expect(listed).toContain(session.sessionId);
      expect(await client.getLastSessionId()).toBe(session.sessionId);
      expect(await client.getSessionMetadata(session.sessionId)).toMatchObject({ sessionId: session.sessionId });
      await client.deleteSession(session.sessionId);
      expect((await client.listSessions()).map(({ sessionId }) => sessionId)).not.toContain(session.sessionId);
      expect(await client.getSessionMetadata(session.sessionId)).toBeUndefined();
      await expect(client.resumeSession(session.sessionId, { onPermissionRequest: approveAll })).rejects.toThrow(
        /session not found/i,
      );
    });

    atReader(
      "lets a client leave a session with session.destroy, the method of older SDKs, and resume it",
      async () => {
        const session = await create();
        await say(session, "one");
        const sessionId = session.sessionId;
        const other = await at.connect();
        const watching = await other.resumeSession(sessionId, { onPermissionRequest: approveAll, ...at.settings });
        expect(await request(client, "session.destroy", { sessionId })).toMatchObject({ success: true });
        expect(await say(watching, "still here")).toBe("you said: still here");
        await other.stop();
        const again = await client.resumeSession(sessionId, { onPermissionRequest: approveAll, ...at.settings });
        expect(await say(again, "two")).toBe("you said: two");
        expect((await again.getEvents()).filter(({ type }) => type === "user.message")).toHaveLength(3);
      },
    );

    atReader("lets clients disconnect from a session that one of them has deleted", async () => {
      const session = await create();
      await say(session, "hi");
      const other = await at.connect();
      const watching = await other.resumeSession(session.sessionId, {
        onPermissionRequest: approveAll,
        ...at.settings,
      });
      await client.deleteSession(session.sessionId);
      await session.disconnect();
      await watching.disconnect();
      expect(await other.stop()).toEqual([]);
    });

    atReader("lets a client shut a session down and resume it with its history", async () => {
      const session = await create();
      await say(session, "one");
      const shutDown = new Promise<SessionEvent>((resolve) => session.on("session.shutdown", resolve));
      await session.rpc.shutdown({});
      expect(await shutDown).toMatchObject({ data: { shutdownType: "routine" } });
      expect(await session.rpc.name.get()).toMatchObject({ name: "one" });
      await session.disconnect();
      const again = await client.resumeSession(session.sessionId, { onPermissionRequest: approveAll, ...at.settings });
      expect(await say(again, "two")).toBe("you said: two");
      expect((await again.getEvents()).filter(({ type }) => type === "user.message")).toHaveLength(2);
    });

    atReader("stores a session in the folder that the client chose, and resumes it from that folder", async () => {
      const { workspacePath } = await create();
      const configDirectory = resolve(workspacePath ?? "", "../../apart");
      const settings = { onPermissionRequest: approveAll, ...at.settings, configDirectory };
      const session = await create(settings);
      const other = await at.connect();
      const unused = await other.resumeSession(session.sessionId, settings);
      await session.disconnect();
      expect(await say(unused, "one")).toBe("you said: one");
      await other.stop();
      expect(existsSync(join(configDirectory, "session-state", session.sessionId, "events.jsonl"))).toBe(true);
      const again = await client.resumeSession(session.sessionId, settings);
      expect(await say(again, "two")).toBe("you said: two");
      expect((await again.getEvents()).filter(({ type }) => type === "user.message")).toHaveLength(2);
      await expect(client.deleteSession(session.sessionId)).rejects.toThrow(/not found/);
      expect(await say(again, "three")).toBe("you said: three");
      await again.disconnect();
    });

    atReader("answers a client's requests without arguments", async () => {
      expect(await client.rpc.tools.list(undefined as never)).toMatchObject({ tools: expect.any(Array) });
      expect(await client.rpc.ping(undefined as never)).toMatchObject({ message: "pong", protocolVersion: 3 });
    });

    atReader("accepts a client's tool whose schema is as deep as the runtime allows", async () => {
      // With the four levels around the schema in `session.create`, the message has 127 levels.
      const levels = 123;
      const parameters = JSON.parse(`${'{"properties":'.repeat(levels)}1${"}".repeat(levels)}`) as Record<
        string,
        unknown
      >;
      const session = await create({ tools: [{ name: "deep", description: "d", parameters, handler: () => "x" }] });
      expect(await say(session, "hi")).toBe("you said: hi");
    });

    it("streams a reply to the client in pieces and in order", async () => {
      const session = await create({ streaming: true });
      const pieces: string[] = [];
      session.on("assistant.message_delta", ({ data }) => void pieces.push(data.deltaContent));
      const whole = Array.from({ length: 300 }, (_, index) => `word${index}`).join(" ");
      expect(await say(session, "!words 300")).toBe(whole);
      expect(pieces.join("")).toBe(whole);
      expect(pieces.length).toBeGreaterThan(10);
    });

    it("lets a client abort a turn and then send another prompt", async () => {
      const session = await create();
      const idle = new Promise<SessionEvent>((resolve) => session.on("session.idle", resolve));
      const begun = new Promise((resolve) => session.on("assistant.turn_start", resolve));
      await session.send("!delay 20000 slow");
      await begun;
      await session.abort();
      expect(await idle).toMatchObject({ data: { aborted: true } });
      expect(await say(session, "next")).toBe("you said: next");
    });

    it("runs a tool of the client and passes its result to the model", async () => {
      const session = await create({
        tools: [
          {
            name: "weather",
            description: "tells the weather",
            parameters: { type: "object", properties: { city: { type: "string" } } },
            handler: async ({ city }: { city: string }) => `sunny in ${city}`,
          },
        ],
      });
      expect(await say(session, '!tool weather {"city":"Bern"}')).toBe("tool said: sunny in Bern");
    });

    it("asks the client for permission to run a shell command, and obeys its answer", async () => {
      const asked: string[] = [];
      let allow = false;
      const session = await create({
        onPermissionRequest: (request) => {
          asked.push(request.kind);
          return allow ? { kind: "approve-once" } : { kind: "reject" };
        },
      });
      const command = '!tool bash {"command":"echo permitted-output","description":"says it"}';
      expect(await say(session, command)).not.toMatch(/^tool said: permitted-output/);
      allow = true;
      expect(await say(session, command)).toContain("permitted-output");
      expect(asked).toEqual(["shell", "shell"]);
    });

    atReader("passes the agent's ask_user question to the client, and the answer back to the agent", async () => {
      const session = await create({
        onUserInputRequest: async ({ question }) => ({ answer: `yes to ${question}`, wasFreeform: true }),
      });
      expect(await say(session, '!tool ask_user {"question":"Really?"}')).toContain("yes to Really?");
    });

    atReader("calls the client's hooks, and lets a hook deny a tool", async () => {
      const called: string[] = [];
      const session = await create({
        hooks: {
          onSessionStart: () => void called.push("start"),
          onUserPromptSubmitted: () => void called.push("prompt"),
          onPreToolUse: ({ toolName }) => {
            called.push(`before ${toolName}`);
            return { permissionDecision: "deny", permissionDecisionReason: "the hook says no" };
          },
        },
      });
      expect(await say(session, '!tool bash {"command":"echo x","description":"x"}')).toContain("the hook says no");
      expect(called).toEqual(expect.arrayContaining(["prompt", "before bash"]));
    });

    atReader(
      "calls the client's hooks for a sub-agent's tools, and asks the client for permission to run those tools",
      async () => {
        const called: string[] = [];
        const sessions = new Map<string, string>();
        const session = await create({
          hooks: {
            onPreToolUse: ({ toolName, sessionId }) => {
              called.push(`before ${toolName}`);
              sessions.set(toolName, sessionId);
            },
            onPostToolUse: ({ toolName }) => void called.push(`after ${toolName}`),
          },
          onPermissionRequest: ({ kind }) => {
            called.push(`permission for ${kind}`);
            return { kind: "approve-once" };
          },
        });
        const prompt = '!tool bash {"command":"echo from-the-sub-agent","description":"x"}';
        const task = { agent_type: "task", name: "helper", description: "x", prompt, mode: "sync" };
        expect(await say(session, `!tool task ${JSON.stringify(task)}`)).toContain("from-the-sub-agent");
        const order = ["before task", "before bash", "permission for shell", "after bash", "after task"];
        expect(called).toEqual(order);
        expect(sessions.get("task")).toBe(session.sessionId);
        expect(sessions.get("bash")).not.toBe(session.sessionId);
      },
    );

    atReader("keeps a session usable when a tool, a hook or another callback of the client throws", async () => {
      const fail = (): never => {
        throw new Error("thrown by the client");
      };
      const command = '!tool bash {"command":"echo output","description":"x"}';
      const session = await create({
        tools: [{ name: "broken", description: "x", parameters: { type: "object" }, handler: fail }],
        hooks: { onPreToolUse: fail, onPostToolUse: fail },
        onUserInputRequest: fail,
        onElicitationRequest: fail,
      });
      expect(await say(session, "!tool broken {}")).toContain("Error: Tool execution failed");
      expect(await say(session, '!tool ask_user {"question":"Really?"}')).toContain("unable to respond");
      expect(await say(session, command)).toMatch(/^tool said: output/);
      const requestedSchema = { type: "object" as const, properties: {} };
      expect(await session.ui.elicitation({ message: "who?", requestedSchema })).toEqual({ action: "cancel" });
      const careful = await create({ onPermissionRequest: fail });
      expect(await say(careful, command)).toContain("Permission denied");
    });

    atReader("runs the MCP server of a plugin that the client names", async () => {
      const { workspacePath } = await create();
      const plugin = resolve(workspacePath ?? "", "../..", unused("plugin"));
      await mkdir(plugin);
      await writeFile(join(plugin, "plugin.json"), JSON.stringify({ name: "echo-plugin", version: "1.0.0" }));
      const program = join(import.meta.dirname, "../fixtures/sessions/mcp-server.mjs");
      const mcpServers = { echoing: { command: process.execPath, args: [program] } };
      await writeFile(join(plugin, ".mcp.json"), JSON.stringify({ mcpServers }));
      const session = await create({ pluginDirectories: [plugin] });
      const server = async () => (await session.rpc.mcp.list()).servers.find(({ name }) => name === "echoing");
      await eventually("the MCP server", async () => (await server())?.status === "connected");
      expect(await server()).toMatchObject({ source: "plugin", sourcePlugin: "echo-plugin" });
      expect(await say(session, '!tool echoing-echo {"text":"hello"}')).toBe("tool said: MCP said: hello");
    });

    atReader("sends ephemeral events to the clients of a session, but keeps them out of its history", async () => {
      const session = await create();
      const other = await at.connect();
      const watching = await other.resumeSession(session.sessionId, {
        onPermissionRequest: approveAll,
        ...at.settings,
      });
      const heard: SessionEvent[] = [];
      watching.on("session.info", (event) => void heard.push(event));
      await session.log("passing", { ephemeral: true });
      await session.log("lasting");
      await eventually("both events at the other client", () => heard.length === 2);
      expect(heard).toMatchObject([
        { ephemeral: true, data: { message: "passing" } },
        { data: { message: "lasting" } },
      ]);
      expect(heard[1]).not.toHaveProperty("ephemeral");
      const kept = (await session.getEvents()).filter(({ type }) => type === "session.info");
      expect(kept).toEqual([heard[1]]);
      await other.stop();
    });

    it("accepts a client's attachments of several megabytes", async () => {
      const session = await create();
      const data = randomBytes(3 * 1024 * 1024).toString("base64");
      const attachments = [
        { type: "blob" as const, data, mimeType: "application/octet-stream", displayName: "big.bin" },
      ];
      const reply = await session.sendAndWait({ prompt: "look", attachments }, 30_000);
      expect(reply?.data.content).toContain("you said:");
      const sent = (await session.getEvents()).find(({ type }) => type === "user.message");
      expect(JSON.stringify(sent)).toContain("big.bin");
    });

    it("answers many requests that one client sends at once", async () => {
      const sessions = await Promise.all(Array.from({ length: 5 }, async () => await create()));
      const replies = await Promise.all([
        ...sessions.map(async (session, index) => await say(session, `n${index}`)),
        ...Array.from({ length: 50 }, async (_, index) => (await client.ping(String(index))).message),
      ]);
      expect(replies).toEqual([
        ...sessions.map((_, index) => `you said: n${index}`),
        ...Array.from({ length: 50 }, (_, index) => `pong: ${index}`),
      ]);
    });

    it("shares a session between two clients of the same user, and sends all events of the session to both", async () => {
      const session = await create();
      await say(session, "first");
      const other = await at.connect();
      const seen: string[] = [];
      const watching = await other.resumeSession(session.sessionId, {
        onPermissionRequest: approveAll,
        ...at.settings,
      });
      watching.on("assistant.message", ({ data }) => void seen.push(data.content));
      // sendAndWait treats the next session.idle as the end of its own turn. So each client waits for the end of the
      // other client's turn before it sends a prompt.
      const over = new Promise((resolve) => watching.on("session.idle", resolve));
      expect(await say(session, "second")).toBe("you said: second");
      await over;
      await eventually("the event at the other client", () => seen.includes("you said: second"));
      const heard = new Promise((resolve) => session.on("session.idle", resolve));
      expect(await say(watching, "third")).toBe("you said: third");
      await heard;
      await other.stop();
      expect(await say(session, "fourth")).toBe("you said: fourth");
    });

    it("runs each tool at the client that provides it, and fails the call when that client has disconnected", async () => {
      const tool = (name: string) => ({
        name,
        description: name,
        parameters: { type: "object", properties: {} },
        handler: async () => `from ${name}`,
      });
      const session = await create({ tools: [tool("first")] });
      await say(session, "hi");
      const other = await at.connect();
      await other.resumeSession(session.sessionId, {
        onPermissionRequest: approveAll,
        ...at.settings,
        tools: [tool("second")],
      });
      expect(await say(session, "!tool second {}")).toBe("tool said: from second");
      expect(await say(session, "!tool first {}")).toBe("tool said: from first");
      await other.stop();
      expect(await say(session, "!tool second {}")).toMatch(/disconnected|does not exist/);
      expect(await say(session, "!tool first {}")).toBe("tool said: from first");
    });

    atReader("passes a form (an elicitation) to the client, and returns the client's answer", async () => {
      const session = await create({
        onElicitationRequest: async ({ message }) => ({ action: "accept", content: { name: `re: ${message}` } }),
      });
      expect(session.capabilities.ui).toMatchObject({ elicitation: true });
      const requestedSchema = { type: "object" as const, properties: { name: { type: "string" as const } } };
      expect(await session.ui.elicitation({ message: "who?", requestedSchema })).toEqual({
        action: "accept",
        content: { name: "re: who?" },
      });
    });

    atReader("queues a client's prompts during a turn, and lets the client remove the newest one", async () => {
      let goOn = (_: string): void => undefined;
      const going = new Promise<string>((resolve) => {
        goOn = resolve;
      });
      const hold = { name: "hold", description: "x", parameters: { type: "object" }, handler: async () => await going };
      const session = await create({ tools: [hold] });
      const idle = new Promise((resolve) => session.on("session.idle", resolve));
      await session.send("!tool hold {}");
      await session.send("two");
      await session.send("three");
      expect(await session.rpc.queue.removeMostRecent()).toMatchObject({ removed: true });
      goOn("on");
      await idle;
      const said = (await session.getEvents()).filter(({ type }) => type === "user.message");
      expect(said.map(({ data }) => (data as { content?: string }).content)).toEqual(["!tool hold {}", "two"]);
    });

    atReader("forks a session for a client, and continues the fork without changing the original", async () => {
      const session = await create();
      await say(session, "common");
      const { sessionId } = await client.rpc.sessions.fork({ sessionId: session.sessionId });
      const fork = await client.resumeSession(sessionId, { onPermissionRequest: approveAll, ...at.settings });
      expect(await say(fork, "apart")).toBe("you said: apart");
      expect((await fork.getEvents()).filter(({ type }) => type === "user.message")).toHaveLength(2);
      expect((await session.getEvents()).filter(({ type }) => type === "user.message")).toHaveLength(1);
    });

    it("accepts a second connect with the same token on one connection, and refuses another token", async () => {
      const connect = async (token: string | undefined) =>
        await request(client, "connect", { token, supportedTaskKinds: [] });
      const greeting = await connect(tokenOf(client));
      expect(greeting).toMatchObject({ ok: true, protocolVersion: 3, version: expect.any(String) });
      expect(await connect(tokenOf(client))).toEqual(greeting);
      await expect(connect("wrong")).rejects.toMatchObject({ code: -32002, message: "AUTHENTICATION_FAILED" });
      await expect(connect(undefined)).rejects.toMatchObject({ code: -32002 });
      expect(await client.ping("still here")).toMatchObject({ message: "pong: still here" });
    });

    atReader("reports no foreground session, because the server is headless", async () => {
      const { sessionId } = await create();
      expect(await client.getForegroundSessionId()).toBeUndefined();
      await expect(client.setForegroundSessionId(sessionId)).rejects.toThrow(/Not running in TUI\+server mode/);
      expect(await client.getForegroundSessionId()).toBeUndefined();
    });

    atReader("refuses the deletion of an unknown session with the runtime's own error message", async () => {
      expect(await request(client, "session.delete", { sessionId: "never-was" })).toEqual({
        success: false,
        error: "Session file not found for never-was",
      });
      await expect(client.deleteSession("never-was")).rejects.toThrow(/Session file not found/);
    });

    atReader("deletes a client's sessions in bulk, and returns the bytes that each of them freed", async () => {
      const sessions = [await create(), await create()];
      for (const session of sessions) await say(session, "hi");
      const ids = sessions.map(({ sessionId }) => sessionId);
      const { freedBytes } = await client.rpc.sessions.bulkDelete({ sessionIds: [...ids, "never-was"] });
      expect(freedBytes).toEqual({
        [String(ids[0])]: expect.any(Number),
        [String(ids[1])]: expect.any(Number),
        "never-was": 0,
      });
      expect(freedBytes[String(ids[0])]).toBeGreaterThan(0);
      const listed = (await client.listSessions()).map(({ sessionId }) => sessionId);
      expect(listed.filter((id) => ids.includes(id))).toEqual([]);
      await expect(request(client, "sessions.bulkDelete", {})).rejects.toThrow(/non-array parameter 'sessionIds'/);
      await expect(client.rpc.sessions.bulkDelete({ sessionIds: ["a/b"] })).rejects.toThrow(
        /Invalid sessionId: "a\/b"/,
      );
    });

    atReader("lists a client's old sessions in a dry run of pruneOld, and then deletes them", async () => {
      const session = await create();
      await say(session, "hi");
      await session.disconnect();
      const { sessionId } = session;
      const others = (await client.listSessions()).map((listed) => listed.sessionId).filter((id) => id !== sessionId);
      const asked = { olderThanDays: 0, includeNamed: true, excludeSessionIds: others };
      const plan = await client.rpc.sessions.pruneOld({ ...asked, dryRun: true });
      expect(plan).toMatchObject({ candidates: [sessionId], deleted: [], skipped: [], dryRun: true });
      expect(await client.getSessionMetadata(sessionId)).toMatchObject({ sessionId });
      expect(await client.rpc.sessions.pruneOld(asked)).toEqual({
        deleted: [sessionId],
        candidates: [],
        skipped: [],
        freedBytes: expect.any(Number),
        dryRun: false,
      });
      expect(await client.getSessionMetadata(sessionId)).toBeUndefined();
      await expect(request(client, "sessions.pruneOld", {})).rejects.toThrow(/parameter 'olderThanDays'/);
    });

    atReader("reports to the client that remote control is off", async () => {
      expect(await client.rpc.sessions.getRemoteControlStatus()).toEqual({ status: { state: "off" } });
    });

    atReader("answers a client's request for an unknown method with code -32601", async () => {
      await expect(request(client, "session.brandNew", { sessionId: "x" })).rejects.toMatchObject({
        code: -32601,
        message: expect.stringMatching(/^Unhandled method "?session\.brandNew/),
      });
    });

    atReader("passes the server's own errors to the client", async () => {
      await expect(client.resumeSession("never-was", { onPermissionRequest: approveAll })).rejects.toThrow(
        /session not found/i,
      );
      const session = await create();
      await expect(session.rpc.mode.set({ mode: "bogus" as "plan" })).rejects.toThrow(/bogus|mode/);
    });

    atReader("lets a client change the model and the name of a session", async () => {
      const session = await create();
      await session.rpc.model.switchTo({ modelId: "gpt-4.1" });
      expect(await session.rpc.model.getCurrent()).toMatchObject({ modelId: "gpt-4.1" });
      await session.rpc.name.set({ name: "my name" });
      expect(await session.rpc.name.get()).toMatchObject({ name: "my name" });
    });
  });
}

interface AskedOfHandler {
  url: string;
  sessionId: string | undefined;
  key: string | null;
}

/** Answers the runtime's model requests. If a prompt contains "please wait", waits until the runtime cancels it. */
class Handler extends CopilotRequestHandler {
  readonly asked: AskedOfHandler[] = [];
  calledOff = 0;

  protected override async sendRequest(request: Request, { sessionId, signal }: CopilotRequestContext) {
    this.asked.push({ url: request.url, sessionId, key: request.headers.get("authorization") });
    if ((await request.text()).includes("please wait")) {
      await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
      this.calledOff++;
      throw new Error("called off");
    }
    const chunk = (choice: object) => `data: ${JSON.stringify({ id: "c", choices: [{ index: 0, ...choice }] })}\n\n`;
    const said = chunk({ delta: { role: "assistant", content: "from the handler" }, finish_reason: null });
    const end = chunk({ delta: {}, finish_reason: "stop" });
    return new Response(`${said}${end}data: [DONE]\n\n`, { headers: { "content-type": "text/event-stream" } });
  }
}

/** Tests a client whose `requestHandler` answers model requests, on a server without model credentials. */
export function describeRequestHandler(
  name: string,
  open: () => Promise<{ connect: (options: CopilotClientOptions) => Promise<CopilotClient> } & AsyncDisposable>,
): void {
  describe(`the fleet, for a client connected ${name} that answers requests to the model,`, () => {
    const handler = new Handler();
    let at: Awaited<ReturnType<typeof open>>;
    let client: CopilotClient;
    beforeAll(async () => {
      at = await open();
      client = await at.connect({ requestHandler: handler });
    });
    afterAll(async () => {
      await at[Symbol.asyncDispose]();
    });

    const create = async (credentials: object) =>
      await client.createSession({
        onPermissionRequest: approveAll,
        provider: { type: "openai", wireApi: "completions", baseUrl: "http://model.invalid/v1", ...credentials },
        model: "gpt-5",
        streaming: true,
      });

    it("passes model requests, with the session's id and key, to the client's handler, and uses its answers", async () => {
      const session = await create({ apiKey: "own-key" });
      expect((await session.sendAndWait("hi", 20_000))?.data.content).toBe("from the handler");
      const url = "http://model.invalid/v1/chat/completions";
      expect(handler.asked).toContainEqual({ url, sessionId: session.sessionId, key: "Bearer own-key" });
    });

    it("sends each model request to the client's handler with a new token from its token provider", async () => {
      let given = 0;
      const session = await create({ bearerTokenProvider: async () => await Promise.resolve(`token-${++given}`) });
      for (const prompt of ["one", "two"]) await session.sendAndWait(prompt, 20_000);
      const keys = handler.asked.filter(({ sessionId }) => sessionId === session.sessionId).map(({ key }) => key);
      expect(keys).toEqual(expect.arrayContaining(["Bearer token-1", "Bearer token-2"]));
    });

    it("tells the client's own model handler to cancel its request when the client aborts the turn", async () => {
      const session = await create({ apiKey: "own-key" });
      const [asked, calledOff] = [handler.asked.length, handler.calledOff];
      await session.send("please wait");
      await eventually("the model's request", () => handler.asked.length > asked);
      await session.abort();
      await eventually("the end of the request", () => handler.calledOff > calledOff);
    });

    it("does not accept a client's answer to a model request that does not exist", async () => {
      const requestId = "never-was";
      const start = { requestId, status: 200, headers: {} };
      expect(await client.rpc.llmInference.httpResponseStart(start)).toMatchObject({ accepted: false });
      const chunk = { requestId, data: "", binary: false, end: true };
      expect(await client.rpc.llmInference.httpResponseChunk(chunk)).toMatchObject({ accepted: false });
    });
  });
}
