import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import { createServer, type RequestListener, type Server } from "node:http";
import { createServer as createSecureServer } from "node:https";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { afterAll, beforeAll, expect, it } from "vitest";
import { ChatTerminal } from "../fixtures/commands/chat.js";
import { TestAuthority } from "../fixtures/tls/authority.js";
import { eventsIn, TestApi } from "../http/harness.js";

const KEY = "canary-key-1f7c";
const FROM_PAGE = { "Sec-Fetch-Site": "same-origin" };

let plain: Server;
let secure: Server;
const authority = new TestAuthority();

/** Answers each prompt with the status in the path. Does not answer if the status is 0. */
const refuse: RequestListener = ({ method, url = "", headers }, response) => {
  const status = Number(/^\/(\d+)\//.exec(url)?.[1]);
  if (method === "GET") response.end('{"data": []}');
  else if (status !== 0) {
    const message = `Not with ${headers.authorization?.slice(0, -3)}…`;
    // The runtime waits for one second between its tries, instead of up to 30.
    response.writeHead(status, { "content-type": "application/json", "retry-after": "0" });
    response.end(JSON.stringify({ error: { message, type: "t", code: null } }));
  }
};

beforeAll(async () => {
  plain = createServer(refuse).listen(0, "127.0.0.1");
  secure = createSecureServer(authority.issue(), refuse).listen(0, "127.0.0.1");
  await Promise.all([once(plain, "listening"), once(secure, "listening")]);
});

afterAll(() => {
  for (const server of [plain, secure]) {
    server.closeAllConnections();
    server.close();
  }
});

const portOf = (server: Server) => (server.address() as AddressInfo).port;
const status = (of: number) => () => `http://127.0.0.1:${portOf(plain)}/${of}/v1`;
const OUR_KEY = "the key in MODEL_KEY (provider.apiKey)";
const WORDS = '"Not with Bearer ***"';
const AGAIN = " The server gave up after 6 tries.";

interface Case {
  url: () => string;
  /** The message after the URL. */
  says: string | RegExp;
  code?: string;
  retryable?: boolean;
  /** Whether the runtime pauses for many seconds between its tries. */
  hasLongPauses?: true;
}

const CASES: Readonly<Record<string, Case>> = {
  "a refused key (401)": {
    url: status(401),
    says: ` refused ${OUR_KEY}, status 401: ${WORDS}.`,
    code: "FLEET_CREDENTIAL_REFUSED",
  },
  "a forbidden request (403)": { url: status(403), says: ` refused access with ${OUR_KEY}, status 403: ${WORDS}.` },
  "an unknown model (404)": {
    url: status(404),
    says: ` does not have the model "m-1" (session.model) or the address (provider.baseUrl), status 404: ${WORDS}.`,
  },
  "a rate limit (429)": {
    url: status(429),
    says: ` limits the use of ${OUR_KEY}, status 429: ${WORDS}.${AGAIN}`,
    code: "FLEET_MODEL_UNAVAILABLE",
    retryable: true,
  },
  "an error of the service (500)": {
    url: status(500),
    says: ` failed, status 500: ${WORDS}.${AGAIN}`,
    code: "FLEET_MODEL_UNAVAILABLE",
    retryable: true,
  },
  "a refused connection": {
    url: () => "http://127.0.0.1:1/v1",
    says: ` (provider.baseUrl) cannot be reached: connection refused.${AGAIN}`,
    code: "FLEET_MODEL_UNAVAILABLE",
    retryable: true,
    hasLongPauses: true,
  },
  "an unknown host": {
    url: () => "http://no-such-host.invalid/v1",
    // The second reason is that of a machine without a network.
    says: / \(provider\.baseUrl\) cannot be reached: the name of the host (is unknown|cannot be looked up)\. The server gave up after 6 tries\./,
    code: "FLEET_MODEL_UNAVAILABLE",
    retryable: true,
    hasLongPauses: true,
  },
  "an unknown certificate authority": {
    url: () => `https://127.0.0.1:${portOf(secure)}/500/v1`,
    says: " (provider.baseUrl) cannot be trusted: unable to verify the first certificate (UNABLE_TO_VERIFY_LEAF_SIGNATURE). Name the file of its certificate authority in the variable SSL_CERT_FILE or NODE_EXTRA_CA_CERTS.",
  },
};

const environmentFor = (url: string) => ({
  COPILOTFLEET_PROVIDER_TYPE: "openai",
  COPILOTFLEET_PROVIDER_BASE_URL: url,
  COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
  COPILOTFLEET_SESSION_MODEL: "m-1",
  MODEL_KEY: KEY,
});

it.concurrent.each(Object.keys(CASES))(
  "init, send, chat, HTTP, the console and the front door report %s with the service's address and words and the fleet's settings",
  async (name) => {
    const {
      url: urlOf,
      says,
      code = "FLEET_TURN_FAILED",
      retryable = false,
      hasLongPauses = false,
    } = CASES[name] as Case;
    const url = urlOf();
    await using at = await TestApi.open({ env: environmentFor(url) });
    const { commands } = at;
    const token = await at.token("alice");
    const expectReason = (text: string, prefix = "") => {
      const flat = text.replace(/\s*\n\s*/g, " ");
      const end = typeof says === "string" ? says : (says.exec(flat)?.[0] ?? `${says}`);
      expect(flat).toContain(`${prefix}${url}${end}`);
      expect(flat).not.toMatch(/COPILOT_|canary-key/);
    };
    const session = async (id: string) => void (await at.ok("POST", "/v1/sessions", { token, body: { id } }));
    const turn = async (id: string, headers = {}, key: string | undefined = token) =>
      await at.ask("POST", `/v1/sessions/${id}/turns`, { token: key, body: { prompt: "hello" }, headers });

    const send = async () => {
      await session("sent");
      const error = await commands.refusal(7, ["send", "sent", "hello", "--user", "alice"]);
      expect(error).toMatchObject({ code, retryable });
      expectReason(error.message, "The turn failed: ");
      const transcript = await commands.ok(["transcript", "sent", "--user", "alice"]);
      expectReason(transcript);
    };
    const init = async () => {
      const flags = ["--provider", "openai", "--base-url", url, "--api-key-env", "MODEL_KEY", "--model", "m-1"];
      const cwd = join(commands.folder, "project");
      mkdirSync(cwd);
      const error = await commands.refusal(7, ["init", ...flags], { cwd });
      expect(error).toMatchObject({
        code,
        retryable,
        suggestions: ["Add --no-try to write the file without trying a prompt."],
      });
      expectReason(error.message, "The turn failed: ");
    };
    const http = async () => {
      await session("http");
      const { status, json } = await turn("http");
      expect({ status, ...json }).toMatchObject({ status: 502, code, retryable });
      expectReason(json.detail, "The turn failed: ");
    };
    const stream = async () => {
      await session("stream");
      const headers = { Accept: "text/event-stream" };
      const events = eventsIn((await turn("stream", headers)).text);
      const texts = events.filter(({ event }) => event === "session.error").map(({ data }) => data.data.message);
      expect(texts).toHaveLength(1);
      expectReason(texts[0]);
      expect(texts[0].startsWith(url)).toBe(true);
      expect(events.at(-1)?.data).toMatchObject({ code, retryable });
      expectReason(events.at(-1)?.data.detail, "The turn failed: ");
    };
    const keyed = async () => {
      await session("keyed");
      const first = await turn("keyed", { "Idempotency-Key": "one" });
      const again = await turn("keyed", { "Idempotency-Key": "one" });
      for (const { json } of [first, again]) {
        expect(json.retryable).toBe(false);
        expectReason(json.detail, "The turn failed: ");
      }
    };
    const console_ = async () => {
      await session("console");
      const { headers, json } = await at.ask("POST", "/console/session", { body: { token }, headers: FROM_PAGE });
      const Cookie = String(headers["set-cookie"]?.[0]).split(";")[0];
      const page = { ...FROM_PAGE, Cookie, "X-Copilotfleet-Console": json.key };
      expectReason((await turn("console", page, undefined)).json.detail, "The turn failed: ");
    };
    const door = async () => {
      const { address } = await at.fleet.doors.open({ listen: { host: "127.0.0.1", port: 0 } });
      const connection = RuntimeConnection.forUri(`${address.host}:${address.port}`, { connectionToken: token });
      const client = new CopilotClient({ connection });
      await client.start();
      const opened = await client.createSession({ onPermissionRequest: () => ({ kind: "approve-once" }) });
      const failed = new Promise<string>((resolve) => opened.on("session.error", ({ data }) => resolve(data.message)));
      await opened.send({ prompt: "hello" });
      expectReason(await failed);
      expect((await failed).startsWith(url)).toBe(true);
      await client.stop();
    };
    const chat = async () => {
      await session("talk");
      await using terminal = await ChatTerminal.open(commands, ["chat", "talk", "--user", "alice"], { columns: 400 });
      expectReason(await terminal.send("hello", /The turn failed: /), "The turn failed: ");
    };
    // A chat's screen is given 30 s to show a turn, which the pauses between the runtime's tries may exceed.
    await Promise.all([send(), init(), http(), stream(), keyed(), console_(), door(), hasLongPauses ? null : chat()]);
  },
);

it("the error of a turn that takes too long reports that the service has not answered", async () => {
  const url = status(0)();
  await using at = await TestApi.open({ env: environmentFor(url) });
  await at.commands.create("alice", "late");
  const args = ["send", "late", "hello", "--user", "alice", "--timeout", "3s"];
  const error = await at.commands.refusal(6, args);
  expect(error).toMatchObject({ code: "FLEET_TURN_TIMEOUT" });
  expect(error.message).toBe(
    `Session late did not finish its turn within 3s. ${url} (provider.baseUrl) has not answered so far.`,
  );
});

it("a certificate authority in SSL_CERT_FILE is trusted", async () => {
  const url = `https://127.0.0.1:${portOf(secure)}/400/v1`;
  await using at = await TestApi.open({ env: environmentFor(url) });
  const file = join(at.commands.folder, "authority.pem");
  writeFileSync(file, authority.cert);
  const env = { SSL_CERT_FILE: file };
  await at.commands.create("alice", "trusted", { env });
  const error = await at.commands.refusal(7, ["send", "trusted", "hello", "--user", "alice"], { env });
  expect(error.message).toBe(`The turn failed: ${url} refused the request, status 400: ${WORDS}.`);
});
