import type { Suggestion } from "../errors.js";

type Advice = readonly Suggestion[];

const allServers: Suggestion = "copilotfleet ps # lists all servers, also those that do not run";
const allSessions: Suggestion = "copilotfleet list # lists all sessions, also those that are not in memory";
const chat: Suggestion = "copilotfleet chat --user USER # talks to the agent";
const compose: Suggestion = "copilotfleet deploy compose # prints a file for docker compose";
const configPath: Suggestion = "copilotfleet config path # lists the files in which you write KEY: VALUE as JSON";
const create: Suggestion = "copilotfleet create --user USER --prompt TEXT # creates a session and sends a prompt";
const deletion: Suggestion = "copilotfleet delete SESSION # deletes a session with its history";
const defaultUser: Suggestion = "copilotfleet config get user # prints the user as whom commands act by default";
const describe: Suggestion = "copilotfleet describe NAME # shows everything about a server, session or user";
const doctor: Suggestion = "copilotfleet doctor # checks everything that the fleet depends on";
const drain: Suggestion = "copilotfleet drain # refuses new turns, and stops all servers";
const gc: Suggestion = "copilotfleet gc --dry-run # shows which expired sessions would be deleted";
const help: Suggestion = "copilotfleet help # lists all commands";
const init: Suggestion =
  "copilotfleet init # sets up GitHub or another provider of models, and writes the configuration";
const kubernetes: Suggestion = "copilotfleet deploy kubernetes # prints manifests for kubectl";
const listen: Suggestion = "copilotfleet config path # lists the files in which you set serve.listen, as HOST:PORT";
const list: Suggestion = "copilotfleet list # lists sessions";
const lostToken: Suggestion =
  "copilotfleet lock SESSION --user USER --steal --reason lost -- true # if the token is lost";
const otherVersion: Suggestion = "copilotfleet version # shows what is installed; npm installs another version";
const ps: Suggestion = "copilotfleet ps # lists servers";
const restart: Suggestion = "copilotfleet restart SERVER # starts a server again with its sessions";
const send: Suggestion = "copilotfleet send SESSION TEXT --user USER # sends a prompt to a session";
const serve: Suggestion = "copilotfleet serve # supervises the servers and opens the front door";
const settings: Suggestion = "copilotfleet config show # shows every setting and its origin";
const smoke: Suggestion = "copilotfleet smoke # tries each feature once, offline";
const spawn: Suggestion = "copilotfleet spawn --user USER # starts the server of a user";
const stop: Suggestion = "copilotfleet stop SERVER # waits for running turns, then stops a server";
const stopAll: Suggestion = "copilotfleet stop --all # stops all servers and keeps the sessions";
const systemd: Suggestion = "copilotfleet deploy systemd # prints units that start the fleet at boot";
const token: Suggestion =
  "copilotfleet token issue --user USER # prints a token with which clients connect to the fleet";
const tokens: Suggestion = "copilotfleet token list # lists the tokens of the front door";
const top: Suggestion = "copilotfleet top # shows the fleet live";
const transcript: Suggestion = "copilotfleet transcript SESSION --user USER # prints a conversation";
const undrain: Suggestion = "copilotfleet drain --undo # accepts new work again";
const version: Suggestion = "copilotfleet version # shows the versions of the command, the SDK and the runtime";

/**
 * The commands that users of docker, kubectl, PM2, JupyterHub and gh type by habit, each with the commands to type here
 * instead. An entry of two words wins over the entry of its first word.
 */
export const FOREIGN_COMMANDS: ReadonlyMap<string, Advice> = new Map(
  Object.entries({
    // docker
    run: [create, spawn],
    kill: ["copilotfleet stop SERVER --force # kills a server at once", stop],
    exec: [send, chat],
    attach: [chat, "copilotfleet logs SERVER --follow # follows a log"],
    images: [version],
    pull: [version],
    build: [version],
    container: [ps],
    containers: [ps],
    stats: [top],
    info: [doctor, version],
    login: [init, token],
    logout: ["copilotfleet token revoke --user USER # ends all tokens of a user"],
    prune: [gc],
    system: [doctor, gc],
    "system prune": [gc],
    "system df": ["copilotfleet list --sort size:desc # lists sessions, the largest first"],
    pause: [drain],
    unpause: [undrain],
    cp: [transcript],
    commit: [transcript],
    history: [transcript],
    port: ["copilotfleet connect --user USER # prints the address and the token of a server", ps],
    up: [serve, spawn],
    down: [stopAll],
    compose: [compose],
    tail: ["copilotfleet logs SERVER --follow # follows a log"],

    "ps -a": [allServers],
    "ps --all": [allServers],
    "ps -aq": ["copilotfleet ps -q # prints the ids of all servers, also of those that do not run"],
    "ps -qa": ["copilotfleet ps -q # prints the ids of all servers, also of those that do not run"],
    "serve --port": [listen],
    "serve -p": [listen],
    "serve --listen": [listen],
    "serve --host": [listen],
    "unlock --user": ["copilotfleet unlock SESSION --token TOKEN # the token that lock printed", lostToken],
    "ps --format": ["copilotfleet ps -o json # other formats: wide, yaml, csv, name"],
    "list -a": [allSessions],
    "list --all": [allSessions],
    "list --format": ["copilotfleet list -o json # other formats: wide, yaml, csv, name"],
    whoami: [defaultUser, list],
    update: [otherVersion],
    upgrade: [otherVersion],

    // kubectl
    get: [ps, list, tokens],
    "get pods": [ps],
    "get pod": [ps],
    "get po": [ps],
    "get servers": [ps],
    "get sessions": [list],
    "get users": [list],
    "get nodes": [top],
    "get tokens": [tokens],
    "get secrets": [tokens],
    "get events": ["copilotfleet events # shows who did what"],
    apply: [kubernetes, settings],
    scale: ["copilotfleet spawn --user USER --count N # starts the servers of N users", settings],
    autoscale: [kubernetes],
    edit: [settings],
    patch: [settings],
    set: [settings],
    rollout: ["copilotfleet restart --all --rolling # restarts servers one after the other"],
    cordon: [drain],
    uncordon: [undrain],
    undrain: [undrain],
    "port-forward": ["copilotfleet connect --user USER # prints the address and the token of a server"],
    expose: [serve],
    "cluster-info": [top, doctor],
    "api-resources": [help],
    wait: ["copilotfleet spawn --user USER --wait 1m # waits until the server answers"],

    // PM2
    reload: ["copilotfleet restart --all --rolling # restarts servers one after the other", restart],
    monit: [top],
    monitor: [top],
    dashboard: [top],
    show: [describe],
    jlist: ["copilotfleet ps --json"],
    prettylist: ["copilotfleet ps --output yaml"],
    startup: [systemd],
    save: [systemd],
    resurrect: [serve],
    flush: [gc],
    ping: [doctor],
    ecosystem: [init],

    // JupyterHub
    hub: [serve],
    jupyterhub: [serve],
    user: ["copilotfleet describe user/USER # shows everything about a user", list],
    server: [ps, serve],
    "upgrade-db": ["copilotfleet store migrate --to STORE # copies the recorded state to another store"],
    migrate: ["copilotfleet store migrate --to STORE # copies the recorded state to another store"],
    users: [list, top],
    tokens: [tokens],
    "token new": [token],
    "token create": [token],
    "token delete": ["copilotfleet token revoke ID # ends a token", tokens],
    "token rm": ["copilotfleet token revoke ID # ends a token", tokens],
    "token ls": [tokens],

    // gh, and words that people try
    auth: [init, token],
    "auth status": [doctor],
    session: [list, create],
    view: [describe],
    new: [create, chat],
    add: [create, spawn],
    ask: [send, chat],
    prompt: [send, chat],
    shell: [chat],
    remove: [deletion],
    del: [deletion],
    destroy: [deletion, stopAll],
    purge: [deletion, gc],
    clean: [gc],
    cleanup: [gc],
    health: [doctor],
    check: [doctor, "copilotfleet config check # finds all mistakes in the configuration"],
    watch: [top, "copilotfleet ps --watch # shows the servers again and again"],
    hosts: [top],
    nodes: [top],
    daemon: [serve, systemd],
    install: [systemd, init],
    setup: [init],
    settings: [settings],
    "config view": [settings],
    "config list": [settings],
    "config ls": [settings],
    "config set": [configPath, settings],
    "config edit": [configPath, settings],
    "config unset": [configPath, settings],
    "deploy docker": [compose],
    "deploy docker-compose": [compose],
    "deploy k8s": [kubernetes],
    "deploy helm": [kubernetes],
    env: [settings],
    test: [smoke],
    demo: [smoke],
    man: [help],
    commands: [help],
  } satisfies Record<string, Advice>),
);

/** Returns the commands to suggest for these words; empty if there is no entry for them. */
export function adviceOn(first: string, second = ""): Advice {
  return FOREIGN_COMMANDS.get(`${first} ${second}`) ?? FOREIGN_COMMANDS.get(first) ?? [];
}

/** Flags of other tools, each with our flags that it may mean. We suggest the first of these that the command has. */
export const FOREIGN_FLAGS: ReadonlyMap<string, readonly string[]> = new Map(
  Object.entries({
    "-f": ["yes", "force", "follow"],
    "-rf": ["yes"],
    "--force": ["yes"],
    "--all-namespaces": ["all"],
    "-a": ["all"],
    "-A": ["all"],
    "--tail": ["turns"],
    "--lines": ["turns"],
    "-t": ["drain-timeout", "timeout", "ttl"],
    "--time": ["drain-timeout"],
    "--grace-period": ["drain-timeout", "timeout"],
    "--replicas": ["count"],
    "--rm": ["ephemeral"],
    "-m": ["model", "prompt"],
    "-p": ["prompt"],
    "--name": ["id", "user"],
    "--workdir": ["cwd"],
    "--message": ["prompt"],
    "--format": ["output"],
    "--filter": ["state"],
    "--selector": ["state"],
    "-w": ["watch", "wait"],
    "--owner": ["user"],
    "--expires": ["ttl"],
  } satisfies Record<string, readonly string[]>),
);
