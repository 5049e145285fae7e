import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  realpathSync,
  rmSync,
  symlinkSync,
  utimesSync,
} from "node:fs";
import { createServer, request, type Server } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { FleetError } from "../../src/base/errors.js";
import type { Provider } from "../../src/config/schema.js";
import { ollamaAddress } from "../../src/providers/detect.js";
import { startEchoModel } from "../../src/providers/echo.js";
import { GatewaySocket } from "../../src/providers/gateway/gateway-socket.js";
import { ModelProvider } from "../../src/providers/provider.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const remote = {
  type: "openai",
  baseUrl: "https://a.example/v1",
  apiKey: { from: "env", name: "A_KEY" } as const,
  bearer: false,
  wireApi: "responses",
} as const;

async function refused(answer: Promise<unknown>): Promise<FleetError> {
  const error: unknown = await answer.then(
    () => new Error("nothing was refused"),
    (reason: unknown) => reason,
  );
  if (!(error instanceof FleetError)) throw error;
  return error;
}

const settings = (provider: Provider | null) => ({
  provider,
  runtime: { path: null, args: [], env: [] },
});

const get = async (provider: Provider | null, env: Record<string, string | undefined>) => {
  await using model = new ModelProvider(settings(provider), { env, networkFolder: "/nowhere" });
  return await model.of("session", {});
};

describe("the key of a provider", () => {
  it("ModelProvider gives no key if no source is set, and no wireApi for a provider type that has only one", async () => {
    expect(await get({ ...remote, type: "anthropic", apiKey: null }, {})).toEqual({
      type: "anthropic",
      baseUrl: "https://a.example/v1",
    });
    expect(await get(null, {})).toBeNull();
  });

  it.each([
    ["missing", undefined, "is not set"],
    ["empty", "", "is empty"],
    ["with a blank", "sk canary", "contains spaces"],
    ["with a line break", "sk-canary\nX-Evil: 1", "contains spaces"],
  ])("ModelProvider refuses a model key (%s), and never shows the key", async (_, key, fault) => {
    const error = await refused(get(remote, { A_KEY: key }));
    expect(error).toMatchObject({ code: "FLEET_MODEL_UNCONFIGURED", exit: 3 });
    expect(error.message).toContain(`A_KEY ${fault}`);
    expect(error.message + error.suggestions.join()).not.toContain("canary");
  });
});

describe("ModelProvider", () => {
  it("ModelProvider starts the echo model once, and its disposal stops the model for good", async () => {
    const model = new ModelProvider(settings({ type: "echo" }), { env: {}, networkFolder: "/nowhere" });
    const provider = await model.of("one", {});
    expect(await model.of("another", {})).toEqual(provider);
    const url = `${provider?.baseUrl}/models`;
    expect((await fetch(url)).status).toBe(200);
    await model[Symbol.asyncDispose]();
    await expect(fetch(url)).rejects.toThrow();
    await expect(model.of("one", {})).rejects.toMatchObject({ code: "FLEET_CLOSED" });
  });

  it("ModelProvider starts no gateway if no key is set, or if no provider is set", async () => {
    await using keyless = new ModelProvider(settings({ ...remote, apiKey: null }), {
      env: {},
      networkFolder: "/nowhere",
    });
    expect(await keyless.of("session", {})).toMatchObject({ baseUrl: remote.baseUrl });
    await using none = new ModelProvider(settings(null), { env: {}, networkFolder: "/nowhere" });
    expect(await none.of("session", {})).toBeNull();
  });

  it("the model gateway gives a session its own token, never the key, and revokes it after the last use", async () => {
    const model = new ModelProvider(settings(remote), { env: { A_KEY: "canary" }, networkFolder: "/nowhere" });
    const first = model.keep("a");
    const second = model.keep("a");
    const a = await model.of("a", {});
    expect(a).toMatchObject({ type: "openai", wireApi: "responses" });
    expect(a?.baseUrl).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/v1$/);
    expect(JSON.stringify(a)).not.toContain("canary");
    expect(await model.of("a", {})).toEqual(a);
    expect((await model.of("b", {}))?.apiKey).not.toBe(a?.apiKey);
    first[Symbol.dispose]();
    first[Symbol.dispose]();
    expect(await model.of("a", {})).toEqual(a);
    second[Symbol.dispose]();
    expect((await model.of("a", {}))?.apiKey).not.toBe(a?.apiKey);
    await model[Symbol.asyncDispose]();
    await expect(fetch(`${a?.baseUrl}/responses`)).rejects.toThrow();
  });

  it("if the socket for servers with a restricted network cannot be made, the next use tries again", async () => {
    const folder = mkdtempSync(join(tmpdir(), "fleet-provider-"));
    onTestFinished(() => rmSync(folder, { recursive: true }));
    const networkFolder = join(folder, "network");
    await using model = new ModelProvider(settings({ type: "echo" }), { env: {}, networkFolder });
    const server = { sandbox: { mode: "landlock", not: [], network: "none" } } as const;
    await expect(model.of("session", server)).rejects.toThrow("ENOENT");
    mkdirSync(networkFolder);
    expect(await model.of("session", server)).toMatchObject({ baseUrl: expect.stringMatching(/:3128\/v1$/) });
  });

  it("a key that cannot be read is refused before a session is opened", async () => {
    await using model = new ModelProvider(settings(remote), { env: {}, networkFolder: "/nowhere" });
    expect(await refused(model.check())).toMatchObject({ code: "FLEET_MODEL_UNCONFIGURED" });
  });
});

/** Makes a folder whose path is too long for the address of a Unix socket. */
function networkFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-network-"));
  onTestFinished(() => removeFolder(folder));
  const long = join(folder, "long".repeat(40));
  mkdirSync(long);
  return long;
}

const socketsIn = (folder: string) => readdirSync(folder).filter((name) => name.endsWith(".0"));

it("GatewaySocket passes connections on to the model's HTTP server, and deletes its socket when it closes", async () => {
  const folder = networkFolder();
  const model = await startEchoModel();
  const socket = await GatewaySocket.open(folder, (connection) => model.accept(connection));
  const [name = ""] = socketsIn(folder);
  expect(socket.host).toBe(`127.${name}:3128`);
  const link = join(folder, "..", "n");
  symlinkSync(folder, link);
  const answer = await new Promise<string>((resolve, reject) => {
    const asked = request({ socketPath: join(link, name), path: "/v1/models" }, (response) => {
      text(response).then(resolve, reject);
    });
    asked.on("error", reject).end();
  });
  expect(answer).toContain('"id":"echo"');
  await Promise.all([socket.close(), socket.close()]);
  await socket.close();
  await model.close();
  expect(socketsIn(folder)).toEqual([]);
});

it("GatewaySocket.open does not delete an old socket whose process is still alive", async () => {
  const folder = networkFolder();
  const living = await GatewaySocket.open(folder, () => undefined);
  const [name = ""] = socketsIn(folder);
  utimesSync(join(folder, name), 0, 0);
  const second = await GatewaySocket.open(folder, () => undefined);
  expect(existsSync(join(folder, name)), "a socket with a process").toBe(true);
  await living.close();
  await second.close();
});

it("with each kind of provider, a server with a restricted network gets an address in its own namespace", async () => {
  const folder = networkFolder();
  const key = { apiKey: null, bearer: false };
  const remote = { type: "openai", baseUrl: "http://192.0.2.1:1/v1", wireApi: "completions", ...key } as const;
  for (const provider of [
    remote,
    { ...remote, apiKey: { from: "env", name: "KEY" } as const },
    { type: "echo" } as const,
  ]) {
    const settings = {
      provider,
      runtime: { path: null, args: [], env: [] },
    };
    await using model = new ModelProvider(settings, { env: { KEY: "canary" }, networkFolder: folder });
    const restricted = await model.of("one", { sandbox: { mode: "landlock", not: [], network: "none" } });
    expect(restricted?.baseUrl).toMatch(/^http:\/\/127\.\d+\.\d+\.0:3128\/v1$/);
    expect(JSON.stringify(restricted)).not.toContain("canary");
    const open = await model.of("two", { sandbox: { mode: "landlock", not: [] } });
    expect(open?.baseUrl).not.toContain(":3128");
  }
  expect(socketsIn(folder)).toEqual([]);
});

const folder = realpathSync(mkdtempSync(join(tmpdir(), "copilotfleet-detect-")));
const answer = "";
let server: Server;

beforeAll(async () => {
  server = createServer((request, response) => response.writeHead(request.url === "/api/tags" ? 200 : 404).end(answer));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
});

afterAll(async () => {
  server.close();
  await removeFolder(folder);
});

it.each([
  ["", "http://127.0.0.1:11434"],
  ["0.0.0.0", "http://127.0.0.1:11434"],
  ["[::]:9", "http://127.0.0.1:9"],
  [":9", "http://127.0.0.1:9"],
  ["box", "http://box:11434"],
  ["box:9", "http://box:9"],
  ["http://box", "http://box"],
  ["https://box/ollama", "https://box"],
  ["a b", null],
])("ollamaAddress reads the OLLAMA_HOST %j as Ollama does", (host, address) => {
  expect(ollamaAddress(host)).toBe(address);
});
