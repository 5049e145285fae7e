import { existsSync, mkdirSync, mkdtempSync, readdirSync, symlinkSync, utimesSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { expect, it, onTestFinished } from "vitest";
import { startEchoModel } from "../../src/providers/echo.js";
import { GatewaySocket } from "../../src/providers/gateway/gateway-socket.js";
import { ModelProvider } from "../../src/providers/provider.js";
import { removeFolder } from "../fixtures/remove-folder.js";

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
