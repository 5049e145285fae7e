import { mkdtempSync, realpathSync } from "node:fs";
import { createServer, type Server } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { ollamaAddress } from "../../src/providers/detect.js";
import { removeFolder } from "../fixtures/remove-folder.js";

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
