import { execFileSync, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { createServer as createHttpServer, type IncomingMessage } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import { type AddressInfo, connect, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openUpstreams, proxyFor } from "../../src/providers/gateway/upstream.js";
import { removeFolder } from "../fixtures/remove-folder.js";

describe("proxyFor", () => {
  const P = "http://proxy:1";
  const Q = "http://other:2";

  it.each([
    ["https://a.example", {}, null],
    ["https://a.example", { HTTPS_PROXY: P }, P],
    ["https://a.example", { https_proxy: P, HTTPS_PROXY: Q }, P],
    ["https://a.example", { HTTP_PROXY: P }, P],
    ["https://a.example", { HTTPS_PROXY: P, HTTP_PROXY: Q }, P],
    ["http://a.example", { HTTPS_PROXY: P, HTTP_PROXY: Q }, Q],
    ["http://a.example", { HTTPS_PROXY: P }, P],
    ["https://a.example", { ALL_PROXY: P }, null],
    ["https://a.example", { HTTPS_PROXY: "proxy:1" }, P],
    ["https://a.example", { HTTPS_PROXY: "" }, null],
  ])("for %s with the variables %j, proxyFor returns %j", (url, env, proxy) => {
    expect(proxyFor(new URL(url), env)?.origin ?? null).toBe(proxy);
  });

  it.each([
    ["a.example", true],
    [".example", true],
    ["example", true],
    ["*.example", true],
    ["*", true],
    ["other, A.EXAMPLE", true],
    ["a.example:443", true],
    ["a.example:444", false],
    ["xa.example", false],
    ["ample", false],
    ["", false],
  ])("with NO_PROXY=%j, https://a.example is reached without the proxy: %j", (list, isExcluded) => {
    expect(proxyFor(new URL("https://a.example"), { HTTPS_PROXY: P, NO_PROXY: list }) === null).toBe(isExcluded);
    expect(proxyFor(new URL("https://a.example"), { HTTPS_PROXY: P, no_proxy: list, NO_PROXY: "*" }) === null).toBe(
      isExcluded,
    );
  });
});

describe.skipIf(spawnSync("openssl", ["version"]).status !== 0)("the way to the model service (openssl)", () => {
  const folder = mkdtempSync(join(tmpdir(), "fleet-upstream-"));
  const certificate = join(folder, "ca.pem");
  const servers: Server[] = [];
  const seen: string[] = [];
  let secureUrl = "";
  let proxyUrl = "";

  async function listen(server: Server): Promise<number> {
    servers.push(server);
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return (server.address() as AddressInfo).port;
  }

  beforeAll(async () => {
    const key = join(folder, "key.pem");
    const names = "subjectAltName=DNS:localhost";
    const options = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", names];
    execFileSync("openssl", ["req", "-x509", ...options, "-keyout", key, "-out", certificate], { stdio: "ignore" });
    const tls = { key: readFileSync(key), cert: readFileSync(certificate) };
    const port = await listen(createHttpsServer(tls, (_, response) => response.end("secret answer")));
    secureUrl = `https://localhost:${port}/v1`;
    const proxy = createHttpServer((request, response) => {
      seen.push(`${request.method} ${request.url} ${request.headers["proxy-authorization"]}`);
      response.end("answer of the proxy");
    });
    proxy.on("connect", (request, socket) => {
      seen.push(`CONNECT ${request.url} ${request.headers["proxy-authorization"]}`);
      if (request.headers["proxy-authorization"] === undefined) {
        socket.end("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
        return;
      }
      const target = connect(Number(request.url?.split(":")[1]), "127.0.0.1", () => {
        socket.write("HTTP/1.1 200 OK\r\n\r\n");
        target.pipe(socket).pipe(target);
      });
      for (const each of [target, socket]) each.on("error", () => each.destroy());
    });
    proxyUrl = `http://u%20ser:pass@127.0.0.1:${await listen(proxy)}`;
  });

  afterAll(async () => {
    for (const server of servers) server.close();
    await removeFolder(folder);
  });

  async function ask(baseUrl: string, env: Record<string, string>): Promise<string> {
    using upstream = openUpstreams(baseUrl, env)();
    const sent = upstream.request("POST", "/v1/responses", {});
    sent.end("{}");
    const [answer] = (await once(sent, "response")) as [IncomingMessage];
    return await text(answer);
  }

  it("openUpstreams trusts certificates in SSL_CERT_FILE, SSL_CERT_DIR and NODE_EXTRA_CA_CERTS, and no others", async () => {
    expect(await ask(secureUrl, { SSL_CERT_FILE: certificate })).toBe("secret answer");
    expect(await ask(secureUrl, { NODE_EXTRA_CA_CERTS: certificate })).toBe("secret answer");
    expect(await ask(secureUrl, { SSL_CERT_DIR: writeFolder() })).toBe("secret answer");
    await expect(ask(secureUrl, {})).rejects.toThrow(/self-signed/);
  });

  function writeFolder(): string {
    const certificates = mkdtempSync(join(folder, "dir-"));
    writeFileSync(join(certificates, "one.pem"), readFileSync(certificate));
    return certificates;
  }

  it("an https service is reached through a tunnel of the proxy, with the proxy's password", async () => {
    seen.length = 0;
    expect(await ask(secureUrl, { HTTPS_PROXY: proxyUrl, SSL_CERT_FILE: certificate })).toBe("secret answer");
    const basic = `Basic ${Buffer.from("u ser:pass").toString("base64")}`;
    expect(seen).toEqual([`CONNECT ${new URL(secureUrl).host} ${basic}`]);
    await expect(ask(secureUrl, { HTTPS_PROXY: proxyUrl })).rejects.toThrow(/self-signed/);
  });

  it("a refusal by the proxy is reported with the proxy's status", async () => {
    const bare = proxyUrl.replace(/\/\/.*@/, "//");
    await expect(ask(secureUrl, { HTTPS_PROXY: bare })).rejects.toThrow("the proxy refused with status 407");
  });

  it("an http service is reached by sending the service's absolute URL to the proxy", async () => {
    seen.length = 0;
    expect(await ask("http://models.example/v1", { HTTP_PROXY: proxyUrl })).toBe("answer of the proxy");
    expect(seen[0]).toMatch(/^POST http:\/\/models\.example\/v1\/responses Basic /);
  });
});
