import fs from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { type AddressInfo, connect, createServer } from "node:net";
import { describe, expect, it, onTestFinished } from "vitest";
import { system } from "../../src/base/system/system.js";

describe("the search for the process behind a port", () => {
  it("listensOn stops reading a server's descriptors once it has found the listening socket", async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as AddressInfo;
    const clients = Array.from({ length: 200 }, () => connect(port, "127.0.0.1"));
    onTestFinished(() => {
      for (const client of clients) client.destroy();
      server.close();
    });
    await Promise.all(clients.map(async (client) => await new Promise((resolve) => client.once("connect", resolve))));
    const { readlinkSync } = fs;
    let looks = 0;
    fs.readlinkSync = ((path: fs.PathLike) => {
      looks++;
      return readlinkSync(path);
    }) as typeof readlinkSync;
    syncBuiltinESMExports();
    onTestFinished(() => {
      fs.readlinkSync = readlinkSync;
      syncBuiltinESMExports();
    });
    expect(system().processes.listensOn(process.pid, port)).toBe(true);
    expect(looks).toBeGreaterThan(0);
    expect(looks).toBeLessThan(200);
  });
});
