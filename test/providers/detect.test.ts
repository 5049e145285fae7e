import { mkdtempSync, realpathSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { detectModels, ollamaAddress } from "../../src/providers/detect.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const folder = realpathSync(mkdtempSync(join(tmpdir(), "copilotfleet-detect-")));
const CLOSED = { OLLAMA_HOST: "127.0.0.1:1", PATH: folder };
let answer = "";
let server: Server;

beforeAll(async () => {
  server = createServer((request, response) => response.writeHead(request.url === "/api/tags" ? 200 : 404).end(answer));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
});

afterAll(async () => {
  server.close();
  await removeFolder(folder);
});

const ollamaHost = () => `127.0.0.1:${(server.address() as AddressInfo).port}`;

describe("detectModels", () => {
  it("detectModels finds nothing on a machine without gh, keys and Ollama", async () => {
    expect(await detectModels(CLOSED)).toEqual({
      tokenVariable: null,
      hasGhLogin: false,
      keyVariables: [],
      ollama: null,
    });
  });

  it("detectModels names the variables that are set, and not their values", async () => {
    const found = await detectModels({
      ...CLOSED,
      GH_TOKEN: "",
      GITHUB_TOKEN: "ghp_canary",
      OPENAI_API_KEY: "canary",
      ANTHROPIC_API_KEY: "",
    });
    expect(found).toMatchObject({ tokenVariable: "GITHUB_TOKEN", keyVariables: ["OPENAI_API_KEY"] });
    expect(JSON.stringify(found)).not.toContain("canary");
    expect(await detectModels({ ...CLOSED, GH_TOKEN: "a", GITHUB_TOKEN: "b" })).toMatchObject({
      tokenVariable: "GH_TOKEN",
    });
  });

  it.each([
    [0, true],
    [1, false],
  ])("when gh auth status exits with %s, detectModels reports the login as %s", async (code, hasGhLogin) => {
    writeFileSync(join(folder, "gh"), `#!/bin/sh\n[ "$*" = "auth status" ] && exit ${code}\nexit 9\n`, { mode: 0o755 });
    expect(await detectModels(CLOSED)).toMatchObject({ hasGhLogin });
  });

  it("detectModels finds Ollama at the address in OLLAMA_HOST, with its models", async () => {
    const env = { PATH: folder, OLLAMA_HOST: ollamaHost() };
    answer = JSON.stringify({ models: [{ name: "llama3.2:latest" }, { name: "qwen3" }, {}, null] });
    expect((await detectModels(env)).ollama).toEqual({
      baseUrl: `http://${ollamaHost()}/v1`,
      models: ["llama3.2:latest", "qwen3"],
    });
    for (const other of ["", "[]", "null", '{"models": 3}']) {
      answer = other;
      expect((await detectModels(env)).ollama, other).toBeNull();
    }
  });
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
