// Plays VS Code's Jupyter extension: loads its widget manager, gives it a kernel and the
// scripts of the environment, and hands it the widgets that a cell displays.
import { activate } from "./ipywidgets.js";

const MIME = "application/vnd.jupyter.widget-view+json";
const services = self["@jupyterlab/services"];
const container = document.getElementById("container");
const host = { loaded: [], failed: [] };
let kernels, kernel, manager;

/** The same as the extension: a module's path goes to RequireJS when it is asked for. */
function scriptLoader(scripts) {
  const registered = new Set();
  return {
    widgetsRegisteredInRequireJs: registered,
    loadWidgetScript: async (name) => {
      if (!(name in scripts)) throw new Error(`no folder of nbextensions has ${name}`);
      window.requirejs.config({ paths: { [name]: scripts[name] } });
      registered.add(name);
    },
    successHandler: (...what) => host.loaded.push(what.slice(0, 2).join(" of ")),
    errorHandler: (...what) => host.failed.push(what.join(" ")),
  };
}

host.start = async (server, scripts) => {
  activate();
  window.vscIPyWidgets8.load();
  const serverSettings = services.ServerConnection.makeSettings({
    baseUrl: `${server}/`, wsUrl: `${server.replace("http", "ws")}/`,
  });
  kernels = new services.KernelManager({ serverSettings });
  await kernels.ready;
  kernel = await kernels.startNew({ name: "python3" });
  await kernel.info;
  manager = new window.vscIPyWidgets.WidgetManager(kernel, container, scriptLoader(scripts), () => {});
};

/** Run a cell, and show its widgets below each other as outputs. */
host.run = async (code) => {
  const shown = [];
  const future = kernel.requestExecute({ code });
  future.onIOPub = ({ header, content }) => {
    if (header.msg_type === "error") host.failed.push(`${content.ename}: ${content.evalue}`);
    if (content.data?.[MIME]) shown.push(content.data[MIME].model_id);
  };
  await future.done;
  for (const id of shown) {
    const output = document.createElement("div");
    output.className = "output";
    const node = document.createElement("div");
    node.className = "cell-output-ipywidget-background";
    output.append(node);
    container.append(output);
    const view = await manager.create_view(await manager.get_model(id), { el: node });
    await manager.display_view({}, view, { node });
  }
};

/** A theme as VS Code sets it: a class and a kind of the body, variables of the root. */
host.theme = (kind, colours) => {
  document.body.className = kind === "vscode-high-contrast-light" ? `${kind} vscode-high-contrast` : kind;
  document.body.dataset.vscodeThemeKind = kind;
  for (const [name, value] of Object.entries(colours)) {
    document.documentElement.style.setProperty(`--vscode-${name}`, value);
  }
};

host.stop = async () => {
  await kernel.shutdown();
  kernels.dispose();
};
window.host = host;
